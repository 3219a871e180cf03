"""What no request may hold, wherever it says it: text that is none, numbers that are none, and nesting without end.

A NUL has no place in PostgreSQL's text, half of a surrogate pair none in UTF-8, NaN and Infinity none in JSON, and what
nests deeper than anybody means it breaks whoever walks it by recursion. All are said here once, for every field of
every route, before anything is validated; so nothing behind this door needs to think of them.
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
"""Lists and objects in one another: twice as deep as any client's, far from where Python's recursion ends."""


async def require_plain(request: Request) -> None:
    """
    Raises:
        InvalidRequest: the path, the query, a header or the JSON body holds what nobody can keep.
    """
    said: dict[str, Any] = {"path": request.path_params, "query": dict(request.query_params)}
    said["header"] = dict(request.headers)
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.body_field is not None and says_json(request) and await request.body():
        said["body"] = await request.json()
    try:
        for where, values in said.items():
            require_plain_values(values, where)
    except InvalidRequest as fault:
        fault.status = invalid_status(request.url.path)
        raise


def says_json(request: Request) -> bool:
    """As FastAPI decides whether it reads the body as JSON."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def require_plain_values(value: Any, where: str) -> None:
    """Every text and number of a JSON value; `where` is what its place is called. Without recursion."""
    level: list[tuple[str, Any]] = [(where, value)]
    for _ in range(MAX_NESTED + 1):
        below: list[tuple[str, Any]] = []
        for place, one in level:
            match one:
                case str():
                    require_text(one, place)
                case float() if not math.isfinite(one):
                    raise InvalidRequest(f"{shown(place)}: {one} is no number in JSON; give a finite one")
                case Mapping():
                    named: Mapping[Any, Any] = one
                    for name, inner in named.items():
                        require_text(name, f"a name in {place}")
                        below.append((f"{place}.{name}", inner))
                case list():
                    items: list[Any] = one
                    below += [(place, item) for item in items]
                case _:
                    pass
        if not below:
            return
        level = below
    raise InvalidRequest(f"{where}: lists and objects nest deeper than {MAX_NESTED}")


def require_text(text: str, place: str) -> None:
    if "\0" in text:
        raise InvalidRequest(f"{shown(place)}: holds a NUL character (U+0000); leave it out")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                f"{shown(place)}: holds half of a surrogate pair, which is no character; send the whole"
            ) from None


def shown(place: str) -> str:
    """Names in a place may be anything; what is shown of them is printable and short."""
    return ascii(place)[1:-1][:100]
