"""Middleware of every request: limits on its body, a request id, security headers."""

import asyncio
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.errors import TooLarge, TooSlow
from safelight.serving.http.errors import respond
from safelight.serving.http.log import REQUEST_ID

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class RequestLimits:
    def __init__(self, app: ASGIApp, *, max_body_bytes: int, body_timeout_s: float) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Keep the caller's own id, so that its logs can be matched with ours.
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)
        began = complete = False
        read = 0
        problem: TooLarge | TooSlow | None = None
        deadline = asyncio.get_running_loop().time() + self.body_timeout_s

        async def send_with_headers(message: Message) -> None:
            nonlocal began
            if problem is not None and not began:
                return  # ignore how the application answers an interrupted body
            if message["type"] == "http.response.start":
                began = True
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    out.setdefault(name, value)
            await send(message)

        async def receive_limited() -> Message:
            """The next part of the body; once it is complete, wait for the disconnect without a time limit."""
            nonlocal read, complete, problem
            try:
                async with asyncio.timeout_at(None if complete else deadline):
                    message = await receive()
            except TimeoutError:
                problem = TooSlow(f"the body did not arrive within {self.body_timeout_s:g} s")
                raise problem from None
            complete = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self.max_body_bytes:
                problem = TooLarge(f"the body is longer than {self.max_body_bytes} bytes")
                raise problem
            return message

        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self.max_body_bytes:
            problem = TooLarge(f"the body is {declared} bytes long; at most {self.max_body_bytes} are allowed")
        else:
            try:
                await self.app(scope, receive_limited, send_with_headers)
            except (TooLarge, TooSlow):
                if began:
                    raise
        if problem is not None and not began:
            answer, problem = respond(scope["path"], problem), None
            await answer(scope, receive, send_with_headers)
