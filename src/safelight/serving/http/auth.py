"""Who is calling: a key as `Authorization: Bearer`, `X-API-Key` or the password of HTTP Basic.

A server without keys takes everybody for one caller; `safelight serve` refuses to be reached from elsewhere so.
"""

import asyncio
import base64
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
        return await asyncio.to_thread(keys.caller, key)
    if await asyncio.to_thread(keys.exist):
        raise Unauthorized("an API key is needed: Authorization: Bearer KEY, X-API-Key: KEY, or Basic with any user")
    return Caller()


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
