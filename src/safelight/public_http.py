"""HTTP to public addresses only, so that a URL from a client cannot reach the local network (SSRF).

The host's name is resolved once, every address must be public, and the connection uses the checked address. Redirects
are not followed: the caller must check each new URL.
"""

import asyncio
import ipaddress
import socket
import ssl

import httpcore
import httpx
from httpcore import AsyncNetworkBackend, AsyncNetworkStream

from safelight.errors import InvalidRequest

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is routed; other addresses are local, or embed an IPv4 address."""
SPECIAL = (
    ipaddress.ip_network("192.0.0.0/24"),  # protocols' own
    ipaddress.ip_network("192.88.99.0/24"),  # relays of 6to4, deprecated by RFC 7526
    ipaddress.ip_network("2001::/23"),  # protocols' own, Teredo among them
    ipaddress.ip_network("2001:db8::/32"),  # documentation
    ipaddress.ip_network("2002::/16"),  # 6to4
    ipaddress.ip_network("3fff::/20"),  # documentation
)
"""From IANA's registries of special addresses: those that Python's `is_global` accepts, at least in older versions."""


class PublicOnly(AsyncNetworkBackend):
    """Connects to public addresses only. TLS still uses the host's name, since only the TCP connection is replaced."""

    def __init__(self, refusal: type[InvalidRequest]) -> None:
        self.refusal = refusal
        self.inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: object = None,
    ) -> AsyncNetworkStream:
        address = await public_address(host, port, refusal=self.refusal)
        return await self.inner.connect_tcp(address, port, timeout=timeout, local_address=local_address)  # pyright: ignore[reportAttributeAccessIssue]

    async def connect_unix_socket(self, *_args: object, **_options: object) -> AsyncNetworkStream:
        raise self.refusal("only http and https URLs are allowed")

    async def sleep(self, seconds: float) -> None:
        await self.inner.sleep(seconds)  # pyright: ignore[reportAttributeAccessIssue]


async def public_address(host: str, port: int, *, refusal: type[InvalidRequest] = InvalidRequest) -> str:
    """Return an address of the host; raise `refusal` unless all its addresses are public."""
    if not 0 < port < 2**16:
        raise refusal(f"{host}: there is no port {port}")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError, OverflowError) as error:
        raise refusal(f"{host}: no such host") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            raise refusal(f"{host}: addresses inside a private network are not allowed")
    return addresses[0]


def is_public(address: str) -> bool:
    """Return whether an address is public. IPv4-mapped and NAT64 addresses are judged by their IPv4 address; 6to4,
    Teredo and older embeddings are refused, since no services use them any more."""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        if number in NAT64:
            number = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        elif number.ipv4_mapped:
            number = number.ipv4_mapped
        elif number not in GLOBAL_UNICAST:
            return False
    return number.is_global and not number.is_multicast and not any(number in network for network in SPECIAL)


def public_client(*, timeout_s: float, refusal: type[InvalidRequest] = InvalidRequest) -> httpx.AsyncClient:
    """Return a client that ignores proxies from the environment: they would resolve names without these checks."""
    transport = httpx.AsyncHTTPTransport()
    transport._pool = httpcore.AsyncConnectionPool(  # pyright: ignore[reportPrivateUsage]
        ssl_context=ssl.create_default_context(), network_backend=PublicOnly(refusal), http1=True
    )
    return httpx.AsyncClient(transport=transport, timeout=timeout_s, trust_env=False, follow_redirects=False)
