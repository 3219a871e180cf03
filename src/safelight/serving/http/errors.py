"""Errors in the words of the dialect that was spoken.

/sdapi/..., /controlnet/...   {"error": class, "detail", "body", "errors"}     AUTOMATIC1111
elsewhere    {"error": {"message", "type", "param", "code"}}  OpenAI, and our own
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from safelight.errors import InvalidRequest, OutOfMemory, SafelightError, TooManyRequests
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.redact import caller_message
from safelight.validation import faults_in

log = logging.getLogger(__name__)

AUTOMATIC1111 = ("/sdapi", "/controlnet")
"""Where its dialect, and that of its extension, is spoken."""

RETRY = {408, 409, 429, 500, 502, 503, 504, 507}
"""What the OpenAI SDK tries again unless told otherwise."""

ERROR_CODE = "x-error-code"
"""Which error an answer is, whatever its dialect: for clients, the log and the metrics."""


class ErrorDetail(BaseModel):
    message: str
    """What was wrong, and what would be right."""
    type: str
    param: str | None
    """The field at fault, where there is one."""
    code: str


class ErrorBody(BaseModel):
    error: ErrorDetail


FAULTS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What was wrong with the request."}
}
"""Of every dialect but AUTOMATIC1111's, which has its own."""


def install(app: FastAPI) -> None:
    app.add_exception_handler(SafelightError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, unforeseen)


def respond(path: str, error: SafelightError, *, told: str | None = None) -> Response:
    """`told` is what the caller learns of it, where that is not all."""
    headers = {"x-should-retry": "true" if may_pass(error) else "false", ERROR_CODE: error.code}
    if isinstance(error, TooManyRequests):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.status == 401:
        headers["www-authenticate"] = 'Basic realm="safelight"' if path.startswith(AUTOMATIC1111) else "Bearer"
    return JSONResponse(body(path, error, told or str(error)), status_code=error.status, headers=headers)


def may_pass(error: SafelightError) -> bool:
    """The same request may do better later: the line was full, not the request wrong or the picture too large."""
    return isinstance(error, TooManyRequests) or (error.status in (503, 507) and not isinstance(error, OutOfMemory))


def body(path: str, error: SafelightError, told: str) -> dict[str, object]:
    if path.startswith(AUTOMATIC1111):
        return {"error": type(error).__name__, "detail": told, "body": "", "errors": told}
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    match error.status:
        case 401:
            kind = "authentication_error"
        case 403:
            kind = "permission_error"
        case 429:
            kind = "rate_limit_error"
        case _:
            pass
    return {"error": {"message": told, "type": kind, "param": error.param, "code": error.code}}


def ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, SafelightError)
    return respond(request.url.path, error, told=caller_message(error, parts_of(request).settings.home))


def invalid(request: Request, error: Exception) -> Response:
    """What FastAPI found wrong with a body or a query, all at once."""
    assert isinstance(error, RequestValidationError)
    path = request.url.path
    found = [unreadable(fault) if fault["type"] == "json_invalid" else fault for fault in error.errors()]
    said = [{**fault, "loc": fault["loc"][1:]} for fault in found]
    return respond(path, faults_in(said, status=invalid_status(path)).alone())


def unreadable(fault: Mapping[str, Any]) -> dict[str, Any]:
    """A body that is no JSON has no fields, and its place in the body is no name."""
    said = f"the body is not JSON: {fault['ctx']['error']} at {fault['loc'][-1]}"
    return {"type": "value_error", "loc": ("body",), "msg": f"Value error, {said}"}


def invalid_status(path: str) -> int:
    """Of a body or a query that is not what the route takes, in the dialect that was spoken."""
    return 422 if path.startswith(AUTOMATIC1111) else 400


def plain(request: Request, error: Exception) -> Response:
    """No such route, or no such method."""
    assert isinstance(error, HTTPException)
    fault = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}")
    fault.status, fault.code = error.status_code, "not_found" if error.status_code == 404 else fault.code
    answer = respond(request.url.path, fault)
    answer.headers.update(error.headers or {})
    return answer


def unforeseen(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return respond(request.url.path, SafelightError("something broke in the server; its log has the details"))
