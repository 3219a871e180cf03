"""Error responses in the format of the request's dialect.

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
from safelight.validation import to_invalid_fields

log = logging.getLogger(__name__)

AUTOMATIC1111 = ("/sdapi", "/controlnet")
"""Path prefixes of its dialect, and of its ControlNet extension's."""

RETRY = {408, 409, 429, 500, 502, 503, 504, 507}
"""Statuses that the OpenAI SDK retries unless `x-should-retry` is set."""

ERROR_CODE = "x-error-code"
"""Header with the error's code, in every dialect: for clients, the log and the metrics."""


class ErrorDetail(BaseModel):
    message: str
    """What was wrong, and what would be right."""
    type: str
    param: str | None
    """The invalid field, if there is one."""
    code: str


class ErrorBody(BaseModel):
    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What was wrong with the request."}
}
"""For all dialects except AUTOMATIC1111's, which has its own error format."""


def install(app: FastAPI) -> None:
    app.add_exception_handler(SafelightError, on_safelight_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_unexpected_error)


def respond(path: str, error: SafelightError, *, message: str | None = None) -> Response:
    """`message` replaces the error's own, if the caller must not see all of it."""
    headers = {"x-should-retry": "true" if is_retryable(error) else "false", ERROR_CODE: error.code}
    if isinstance(error, TooManyRequests):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.status == 401:
        headers["www-authenticate"] = 'Basic realm="safelight"' if path.startswith(AUTOMATIC1111) else "Bearer"
    return JSONResponse(body(path, error, message or str(error)), status_code=error.status, headers=headers)


def is_retryable(error: SafelightError) -> bool:
    """Whether the same request may succeed later: the queue was full, not the request invalid or too large."""
    return isinstance(error, TooManyRequests) or (error.status in (503, 507) and not isinstance(error, OutOfMemory))


def body(path: str, error: SafelightError, message: str) -> dict[str, object]:
    if path.startswith(AUTOMATIC1111):
        return {"error": type(error).__name__, "detail": message, "body": "", "errors": message}
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
    return {"error": {"message": message, "type": kind, "param": error.param, "code": error.code}}


def on_safelight_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SafelightError)
    return respond(request.url.path, error, message=caller_message(error, parts_of(request).settings.home))


def on_validation_error(request: Request, error: Exception) -> Response:
    """All errors that FastAPI found in a body or a query, at once."""
    assert isinstance(error, RequestValidationError)
    path = request.url.path
    found = [describe_invalid_json(one) if one["type"] == "json_invalid" else one for one in error.errors()]
    problems = [{**problem, "loc": problem["loc"][1:]} for problem in found]
    return respond(path, to_invalid_fields(problems, status=invalid_status(path)).simplified())


def describe_invalid_json(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The error of a body that is not JSON: its location is an offset and not a field."""
    message = f"the body is not JSON: {problem['ctx']['error']} at {problem['loc'][-1]}"
    return {"type": "value_error", "loc": ("body",), "msg": f"Value error, {message}"}


def invalid_status(path: str) -> int:
    """The status of an invalid body or query in the dialect of this path."""
    return 422 if path.startswith(AUTOMATIC1111) else 400


def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer a request for an unknown route or method."""
    assert isinstance(error, HTTPException)
    problem = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}")
    problem.status, problem.code = error.status_code, "not_found" if error.status_code == 404 else problem.code
    answer = respond(request.url.path, problem)
    answer.headers.update(error.headers or {})
    return answer


def on_unexpected_error(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return respond(request.url.path, SafelightError("an internal error occurred; the server's log has the details"))
