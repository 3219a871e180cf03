"""Fetches a picture that a request names by URL, from public addresses only; redirects are checked again."""

import asyncio
import base64
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from safelight.errors import InvalidImage
from safelight.public_http import public_client

TIMEOUT_S = 10.0
MAX_REDIRECTS = 3
MAX_URL = 2048
WHITE_SPACE = b" \t\r\n\v\f"


async def fetch_picture(source: str, *, max_bytes: int) -> bytes:
    """The bytes behind a data URL, plain base64, or an http(s) URL.

    Raises:
        InvalidImage: it cannot be fetched, is too large, or its address is not public.
    """
    source = source.strip()
    if source.startswith(("http://", "https://")):
        return await fetch(source, max_bytes=max_bytes)
    return decode(source.partition(",")[2] if source.startswith("data:") else source, max_bytes=max_bytes)


def decode(encoded: str, *, max_bytes: int) -> bytes:
    """Decode base64, in one line or, as in MIME, in many (RFC 2045)."""
    try:
        digits = encoded.encode("ascii").translate(None, WHITE_SPACE)
        if len(digits) * 3 // 4 - digits[-2:].count(b"=") > max_bytes:
            raise InvalidImage(f"the picture is larger than {max_bytes} bytes")
        return base64.b64decode(digits, validate=True)
    except ValueError:
        raise InvalidImage("the picture is neither a URL nor valid base64") from None


async def fetch(url: str, *, max_bytes: int) -> bytes:
    if len(url) > MAX_URL:
        raise InvalidImage(f"{url[:80]}...: a URL of {len(url)} characters; at most {MAX_URL} are allowed")
    async with public_client(timeout_s=TIMEOUT_S, refusal=InvalidImage) as http:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with asyncio.timeout(TIMEOUT_S), http.stream("GET", url) as answer:
                    if answer.has_redirect_location:
                        url = urljoin(url, answer.headers["location"])
                        if urlsplit(url).scheme not in ("http", "https"):
                            raise InvalidImage("only http and https URLs are fetched")
                        continue
                    if answer.status_code != 200:
                        raise InvalidImage(f"{url}: answered {answer.status_code}")
                    data = bytearray()
                    async for part in answer.aiter_bytes():
                        data += part
                        if len(data) > max_bytes:
                            raise InvalidImage(f"{url}: larger than {max_bytes} bytes")
                    return bytes(data)
            except (httpx.HTTPError, httpx.InvalidURL, httpcore.NetworkError, httpcore.TimeoutException) as error:
                raise InvalidImage(f"{url}: {error or type(error).__name__}") from error
            except (ValueError, OverflowError) as error:  # an invalid host name or port fails in many places
                raise InvalidImage(f"{url}: this URL is invalid ({error})") from error
            except TimeoutError:
                raise InvalidImage(f"{url}: took longer than {TIMEOUT_S:.0f} s") from None
    raise InvalidImage(f"{url}: more than {MAX_REDIRECTS} redirects")
