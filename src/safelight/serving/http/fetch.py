"""Fetches a picture that a request names by URL, from public addresses only; a redirect is checked anew."""

import asyncio
import base64
import binascii
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from safelight.errors import InvalidImage
from safelight.public_http import public_client

TIMEOUT_S = 10.0
MOST_REDIRECTS = 3


async def fetch_picture(source: str, *, max_bytes: int) -> bytes:
    """The bytes behind a data URL, plain base64, or an http(s) URL.

    Raises:
        InvalidImage: it cannot be had, is too long, or lies where we do not go.
    """
    if source.startswith(("http://", "https://")):
        return await fetch(source, max_bytes=max_bytes)
    _, _, encoded = source.partition(",") if source.startswith("data:") else ("", "", source)
    if len(encoded) * 3 // 4 > max_bytes:
        raise InvalidImage(f"the picture is larger than {max_bytes} bytes")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("the picture is neither a URL nor valid base64") from None


async def fetch(url: str, *, max_bytes: int) -> bytes:
    async with public_client(timeout_s=TIMEOUT_S, refusal=InvalidImage) as http:
        for _ in range(MOST_REDIRECTS + 1):
            try:
                async with asyncio.timeout(TIMEOUT_S), http.stream("GET", url) as answer:
                    if answer.is_redirect:
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
            except TimeoutError:
                raise InvalidImage(f"{url}: took longer than {TIMEOUT_S:.0f} s") from None
    raise InvalidImage(f"{url}: more than {MOST_REDIRECTS} redirects")
