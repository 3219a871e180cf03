"""Authentication: an API key as `Authorization: Bearer`, `X-API-Key` or the password of HTTP Basic.

A server started with --no-keys also accepts requests without a key from its own machine, all as one caller.
"""

import base64
import ipaddress
from typing import Annotated

from fastapi import Depends, Request

from safelight.errors import Unauthorized
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.keys import Caller

TRUSTED = "safelight.caller"
"""The ASGI scope's key for the caller when the application is called from its own process."""


async def caller_of(request: Request) -> Caller:
    caller = await identify(request)
    request.state.key_name = caller.name  # for the log and the metrics
    return caller


async def identify(request: Request) -> Caller:
    if TRUSTED in request.scope:
        return request.scope[TRUSTED]
    keys = parts_of(request).keys
    key = key_from(request)
    if key:
        return await keys.database.run(keys.caller, key)
    if parts_of(request).settings.no_keys and is_local(request):
        return Caller()
    raise Unauthorized("an API key is needed: Authorization: Bearer KEY, X-API-Key: KEY, or Basic with any user")


def is_local(request: Request) -> bool:
    """Whether the request comes from this machine; one without an address, as through a Unix socket, does."""
    return request.client is None or ipaddress.ip_address(request.client.host).is_loopback


def key_from(request: Request) -> str:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    match kind.lower():
        case "bearer":
            return value.strip() if value.strip().startswith("sl-") else ""
        case "basic":
            try:
                user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except ValueError:  # not base64, or not text
                raise Unauthorized("the Authorization header is not valid HTTP Basic") from None
            return password or user
        case _:
            return request.headers.get("x-api-key", "")


CurrentCaller = Annotated[Caller, Depends(caller_of)]
