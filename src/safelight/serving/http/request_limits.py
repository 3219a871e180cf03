"""What every request passes on its way in and out: limits on its body, an id, headers that keep browsers careful."""

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
        # The caller's own id is kept, so that its logs and ours can be laid side by side.
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)
        began = whole = False
        read = 0
        fault: TooLarge | TooSlow | None = None
        late = asyncio.get_running_loop().time() + self.body_timeout_s

        async def mark(message: Message) -> None:
            nonlocal began
            if fault is not None and not began:
                return  # whatever the application makes of a body that broke off
            if message["type"] == "http.response.start":
                began = True
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    out.setdefault(name, value)
            await send(message)

        async def take() -> Message:
            """The next piece of the body; once that is whole, what is waited for is the client's going away."""
            nonlocal read, whole, fault
            try:
                async with asyncio.timeout_at(None if whole else late):
                    message = await receive()
            except TimeoutError:
                fault = TooSlow(f"the body did not arrive within {self.body_timeout_s:g} s")
                raise fault from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self.max_body_bytes:
                fault = TooLarge(f"the body is longer than {self.max_body_bytes} bytes")
                raise fault
            return message

        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self.max_body_bytes:
            fault = TooLarge(f"the body is {declared} bytes long; at most {self.max_body_bytes} are taken")
        else:
            try:
                await self.app(scope, take, mark)
            except (TooLarge, TooSlow):
                if began:
                    raise
        if fault is not None and not began:
            answer, fault = respond(scope["path"], fault), None
            await answer(scope, receive, mark)
