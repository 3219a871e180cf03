"""Sees every request come and go: one line in the log, one answer counted. Prompts and queries are in neither."""

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.errors import SafelightError
from safelight.serving.http.errors import ERROR_CODE
from safelight.serving.monitoring.metrics import Metrics

log = logging.getLogger(__name__)

QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked for every few seconds by machines: counted, and logged only when they fail."""
GONE = 499
"""What nginx calls a client that left before it was answered."""


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
        status, code = GONE, ""

        async def look(message: Message) -> None:
            nonlocal answered_s, status, code
            if message["type"] == "http.response.start":
                answered_s = time.perf_counter() - began
                status, code = message["status"], Headers(raw=message["headers"]).get(ERROR_CODE, "")
            await send(message)

        try:
            await self.app(scope, receive, look)
        except Exception:
            # Answered outside of here, by Starlette's outermost layer.
            status, code = 500, SafelightError.code
            raise
        finally:
            seconds = time.perf_counter() - began
            state = scope.get("state", {})
            key = state.get("key_name", "")
            self.metrics.answered(
                method=scope["method"],
                route=route_of(scope),
                status=status,
                seconds=seconds if answered_s is None else answered_s,
                code=code,
                key=key,
            )
            said = {
                "request_id": state.get("request_id", ""),
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 1),
                **({"key": key} if key else {}),
                **({"code": code} if code else {}),
            }
            if scope["path"] not in QUIET or status >= 400:
                log.info("%s %s %d", scope["method"], scope["path"], status, extra=said)


def route_of(scope: Scope) -> str:
    """`/v1/jobs/{job_id}`, so that there are as many as there are routes."""
    return getattr(scope.get("route"), "path", "unmatched")
