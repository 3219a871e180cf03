"""Who is calling: a key as `Authorization: Bearer`, `X-API-Key` or the password of HTTP Basic.

A server that was started to do without takes whoever calls from its own machine, and has no key, for one caller.
"""

import base64
import ipaddress
from typing import Annotated

from fastapi import Depends, Request

from safelight.errors import Unauthorized
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.keys import Caller

TRUSTED = "safelight.caller"
"""Where an ASGI scope says who calls, when the application is called by its own process."""


async def caller_of(request: Request) -> Caller:
    caller = await identify(request)
    request.state.key_name = caller.name  # for the log and the metrics
    return caller


async def identify(request: Request) -> Caller:
    if TRUSTED in request.scope:
        return request.scope[TRUSTED]
    keys = parts_of(request).keys
    key = key_in(request)
    if key:
        return await keys.database.run(keys.caller, key)
    if parts_of(request).settings.no_keys and is_near(request):
        return Caller()
    raise Unauthorized("an API key is needed: Authorization: Bearer KEY, X-API-Key: KEY, or Basic with any user")


def is_near(request: Request) -> bool:
    """Whether it comes from this machine. One that comes through no address at all, as by a socket's file, does."""
    return request.client is None or ipaddress.ip_address(request.client.host).is_loopback


def key_in(request: Request) -> str:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    match kind.lower():
        case "bearer":
            return value.strip() if value.strip().startswith("sl-") else ""
        case "basic":
            try:
                user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except ValueError:  # no base64, or what it holds is no text
                raise Unauthorized("the Authorization header is not valid HTTP Basic") from None
            return password or user
        case _:
            return request.headers.get("x-api-key", "")


Who = Annotated[Caller, Depends(caller_of)]
