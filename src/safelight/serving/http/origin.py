"""Checks `Host` and `Origin` of requests, to keep out web pages of other sites.

A page in a browser may send requests to any address, this machine's included, and may point its own name there (DNS
rebinding). Browsers send the called name in `Host`, and the page's site in `Origin` and `Sec-Fetch-Site`.
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
"""Methods that change nothing; pages of other origins cannot read their answers."""
OWN = ("same-origin", "none")
"""`Sec-Fetch-Site` of the server's own pages, and of URLs that a person typed."""


class Origin:
    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.hosts = [host.lower() for host in settings.allowed_hosts.split()]
        self.origins = settings.cors_origins.split()
        self.checks_host = settings.no_keys or bool(self.hosts)
        """With required keys and no list, any host is accepted: a rebinding page still lacks a key."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and TRUSTED not in scope and (problem := self.problem(scope)):
            await respond(scope["path"], problem)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def problem(self, scope: Scope) -> Forbidden | None:
        headers = Headers(scope=scope)
        host = headers.get("host")  # every browser sends it, HTTP/1.0 clients need not
        name = host_of(host or "")
        if self.checks_host and host is not None and not (is_loopback(name) or self.allows(name)):
            return Forbidden(
                f"{name!r} is not an allowed name of this server; add it to SAFELIGHT_ALLOWED_HOSTS, "
                "separated by spaces"
            )
        if scope["method"] not in SAFE and not self.is_allowed_origin(headers, host):
            return Forbidden(
                "a page of another site sent this; SAFELIGHT_CORS_ORIGINS lists the origins whose pages may do so"
            )
        return None

    def allows(self, name: str) -> bool:
        return matches_any(name, self.hosts)

    def is_allowed_origin(self, headers: Headers, host: str | None) -> bool:
        """Whether the request comes from no page, from one of the server's own, or from an allowed one."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site in OWN or "*" in self.origins or (origin is not None and origin in self.origins):
            return True
        if site is not None:
            return False
        if origin is None:
            return True
        source = urlsplit(origin)
        return source.netloc.lower() == (host or "").lower() or self.allows(host_of(source.netloc))


def host_of(netloc: str) -> str:
    """The host of a network location, without the port and without the brackets of IPv6."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def matches_any(name: str, hosts: Sequence[str]) -> bool:
    """Whether a pattern matches: `*` is any name, `*.example.com` any subdomain."""
    return any(host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts)


def is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
