"""Rejects values that cannot be stored or processed, in every field of every route, before validation.

PostgreSQL's text cannot contain NUL, UTF-8 no lone surrogates, JSON no NaN or Infinity, and very deep nesting breaks
recursive code. They are checked here once, so later code need not handle them.
"""

import math
from collections.abc import Mapping
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute

from safelight.errors import InvalidRequest
from safelight.serving.http.errors import invalid_status

MAX_NESTED = 100
"""Maximum nesting of lists and objects: twice as deep as any client's, far below Python's recursion limit."""


async def require_plain(request: Request) -> None:
    """
    Raises:
        InvalidRequest: the path, the query, a header or the JSON body has a value that cannot be stored.
    """
    inputs: dict[str, Any] = {"path": request.path_params, "query": dict(request.query_params)}
    inputs["header"] = dict(request.headers)
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.body_field is not None and is_json(request) and await request.body():
        inputs["body"] = await request.json()
    try:
        for where, values in inputs.items():
            require_plain_values(values, where)
    except InvalidRequest as problem:
        problem.status = invalid_status(request.url.path)
        raise


def is_json(request: Request) -> bool:
    """Whether FastAPI reads the body as JSON, by its content type."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def require_plain_values(value: Any, where: str) -> None:
    """Check every text and number of a JSON value, without recursion; `where` names the value in errors."""
    level: list[tuple[str, Any]] = [(where, value)]
    for _ in range(MAX_NESTED + 1):
        below: list[tuple[str, Any]] = []
        for path, item in level:
            match item:
                case str():
                    require_text(item, path)
                case float() if not math.isfinite(item):
                    raise InvalidRequest(f"{printable(path)}: {item} is no number in JSON; give a finite one")
                case Mapping():
                    mapping: Mapping[Any, Any] = item
                    for name, inner in mapping.items():
                        require_text(name, f"a name in {path}")
                        below.append((f"{path}.{name}", inner))
                case list():
                    inner_items: list[Any] = item
                    below += [(path, inner) for inner in inner_items]
                case _:
                    pass
        if not below:
            return
        level = below
    raise InvalidRequest(f"{where}: lists and objects nest deeper than {MAX_NESTED}")


def require_text(text: str, path: str) -> None:
    if "\0" in text:
        raise InvalidRequest(f"{printable(path)}: contains a NUL character (U+0000); leave it out")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                f"{printable(path)}: contains half of a surrogate pair, which is no character; send the whole pair"
            ) from None


def printable(path: str) -> str:
    """The path for error messages: names may contain anything, so escape and shorten it."""
    return ascii(path)[1:-1][:100]
