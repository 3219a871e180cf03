"""Who a request comes from and whom it takes the server for: what keeps other people's web pages out.

A page in a browser may send requests to any address, this machine's included, and may have its own name lead there (DNS
rebinding). Browsers say in `Host` which name was called, and in `Origin` and `Sec-Fetch-Site` whose page asks.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.errors import Forbidden
from safelight.serving.http.auth import TRUSTED
from safelight.serving.http.errors import respond
from safelight.settings import Settings

SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing; what they answer, another origin's page may not read."""
OWN = ("same-origin", "none")
"""`Sec-Fetch-Site` of the server's own pages, and of what a person typed."""


class Origin:
    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.hosts = [host.lower() for host in settings.allowed_hosts.split()]
        self.origins = settings.cors_origins.split()
        self.names_are_checked = settings.no_keys or bool(self.hosts)
        """A page that called itself the server would still lack a key, where keys are needed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and TRUSTED not in scope and (fault := self.fault(scope)):
            await respond(scope["path"], fault)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def fault(self, scope: Scope) -> Forbidden | None:
        headers = Headers(scope=scope)
        host = headers.get("host")  # every browser says it, and HTTP/1.0 need not
        name = host_of(host or "")
        if self.names_are_checked and host is not None and not (is_loopback(name) or self.allows(name)):
            return Forbidden(
                f"this server does not go by the name {name!r}; SAFELIGHT_ALLOWED_HOSTS lists more names, "
                "between spaces"
            )
        if scope["method"] not in SAFE and not self.is_ours(headers, host):
            return Forbidden(
                "another site's page sent this; SAFELIGHT_CORS_ORIGINS lists the origins whose pages may do so"
            )
        return None

    def allows(self, name: str) -> bool:
        return is_among(name, self.hosts)

    def is_ours(self, headers: Headers, host: str | None) -> bool:
        """Whether no page asks, or one of the server's own, or one that may."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site in OWN or "*" in self.origins or (origin is not None and origin in self.origins):
            return True
        if site is not None:
            return False
        if origin is None:
            return True
        asking = urlsplit(origin)
        return asking.netloc.lower() == (host or "").lower() or self.allows(host_of(asking.netloc))


def host_of(netloc: str) -> str:
    """Without the port, and without the brackets of IPv6."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def is_among(name: str, hosts: Sequence[str]) -> bool:
    """`*` is any name, `*.example.com` any below that one."""
    return any(host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts)


def is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
