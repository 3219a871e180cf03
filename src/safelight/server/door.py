"""What every request passes on its way in and out: a size limit, an id, and headers that keep browsers careful."""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.errors import TooLarge
from safelight.server.errors import respond
from safelight.server.log import REQUEST_ID

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
PAGES = ("/docs", "/redoc")
"""FastAPI's own pages fetch scripts, so no content policy fits them."""


class Door:
    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

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
        began = False
        read = 0

        async def mark(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    if not (name == "content-security-policy" and scope["path"].startswith(PAGES)):
                        out.setdefault(name, value)
            await send(message)

        async def count() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body_bytes:
                raise TooLarge(f"the body is longer than {self.max_body_bytes} bytes")
            return message

        try:
            declared = headers.get("content-length", "0")
            if declared.isdigit() and int(declared) > self.max_body_bytes:
                raise TooLarge(f"the body is {declared} bytes long; at most {self.max_body_bytes} are taken")
            await self.app(scope, count, mark)
        except TooLarge as error:
            if began:
                raise
            await respond(scope["path"], error)(scope, receive, mark)
