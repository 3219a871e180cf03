"""Fetches a picture that a request names by URL, without becoming anybody's way into the local network (SSRF).

The host's name is resolved once, every address must be public, and the connection goes to the address that was
checked; a redirect is a new URL and is checked anew.
"""

import asyncio
import base64
import binascii
import ipaddress
import socket
import ssl
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx
from httpcore import AsyncNetworkBackend, AsyncNetworkStream

from safelight.errors import InvalidImage

TIMEOUT_S = 10.0
MOST_REDIRECTS = 3
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class PublicOnly(AsyncNetworkBackend):
    """Connects to public addresses only. TLS still sees the host's name, since only the connection is ours."""

    def __init__(self) -> None:
        self.inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: object = None,
    ) -> AsyncNetworkStream:
        address = await public_address(host, port)
        return await self.inner.connect_tcp(address, port, timeout=timeout, local_address=local_address)  # pyright: ignore[reportAttributeAccessIssue]

    async def connect_unix_socket(self, *_args: object, **_options: object) -> AsyncNetworkStream:
        raise InvalidImage("only http and https URLs are fetched")

    async def sleep(self, seconds: float) -> None:
        await self.inner.sleep(seconds)  # pyright: ignore[reportAttributeAccessIssue]


async def public_address(host: str, port: int) -> str:
    """One address of the host, all of which must be public."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidImage(f"{host}: no such host") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            raise InvalidImage(f"{host}: addresses inside a private network are not fetched")
    return addresses[0]


def is_public(address: str) -> bool:
    number = ipaddress.ip_address(address.split("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        # An IPv4 address in another dress is judged as what it is.
        if number in NAT64:
            number = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        else:
            number = number.ipv4_mapped or number.sixtofour or (number.teredo[1] if number.teredo else number)
    return number.is_global and not number.is_multicast


async def post(url: str, *, content: bytes, headers: dict[str, str]) -> int:
    """POST to a public address, no redirect followed; the status."""
    async with client() as http:
        answer = await http.post(url, content=content, headers=headers)
        return answer.status_code


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
    async with client() as http:
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


def client() -> httpx.AsyncClient:
    """One that ignores proxies named in the environment: they would resolve names behind our back."""
    transport = httpx.AsyncHTTPTransport()
    transport._pool = httpcore.AsyncConnectionPool(  # pyright: ignore[reportPrivateUsage]
        ssl_context=ssl.create_default_context(), network_backend=PublicOnly(), http1=True
    )
    return httpx.AsyncClient(transport=transport, timeout=TIMEOUT_S, trust_env=False, follow_redirects=False)
