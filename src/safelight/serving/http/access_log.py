"""Logs and counts every request; neither log nor metrics contain prompts or queries."""

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.errors import SafelightError
from safelight.serving.http.errors import ERROR_CODE
from safelight.serving.monitoring.metrics import Metrics

log = logging.getLogger(__name__)

QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Polled every few seconds by machines: counted, but only logged when they fail."""
CLIENT_CLOSED = 499
"""nginx's status for a client that disconnected before it was answered."""


class AccessLog:
    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        answered_s = None
        status, code = CLIENT_CLOSED, ""

        async def record(message: Message) -> None:
            nonlocal answered_s, status, code
            if message["type"] == "http.response.start":
                answered_s = time.perf_counter() - began
                status, code = message["status"], Headers(raw=message["headers"]).get(ERROR_CODE, "")
            await send(message)

        try:
            await self.app(scope, receive, record)
        except Exception:
            # Starlette's outermost layer answers it, outside of this middleware.
            status, code = 500, SafelightError.code
            raise
        finally:
            seconds = time.perf_counter() - began
            state = scope.get("state", {})
            key = state.get("key_name", "")
            self.metrics.on_response(
                method=scope["method"],
                route=route_of(scope),
                status=status,
                seconds=seconds if answered_s is None else answered_s,
                code=code,
                key=key,
            )
            fields = {
                "request_id": state.get("request_id", ""),
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 1),
                **({"key": key} if key else {}),
                **({"code": code} if code else {}),
            }
            if scope["path"] not in QUIET or status >= 400:
                log.info("%s %s %d", scope["method"], scope["path"], status, extra=fields)


def route_of(scope: Scope) -> str:
    """The template of the route, such as `/v1/jobs/{job_id}`, which keeps the number of labels small."""
    return getattr(scope.get("route"), "path", "unmatched")
