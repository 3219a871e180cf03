"""/openapi.json beyond what the routes say of themselves: where a key goes, and what forms and streams are made of."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key made by `safelight keys create`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "basic": {"type": "http", "scheme": "basic", "description": "The key is the password; any user name does."},
}
COMPONENTS = "#/components/schemas/"
NULL: dict[int | str, dict[str, Any]] = {
    200: {"description": "Done.", "content": {"application/json": {"schema": {"type": "null"}}}}
}
"""Of a route that has nothing to say."""
PICTURE = {"schema": {"type": "string", "format": "binary"}}


def form(body: type[BaseModel]) -> dict[str, Any]:
    """The body of a multipart route that reads its own form; `describe` is told of it too."""
    content = {"multipart/form-data": {"schema": {"$ref": COMPONENTS + body.__name__}}}
    return {"requestBody": {"content": content, "required": True}}


def stream(message: type[BaseModel], what: str) -> dict[int | str, dict[str, Any]]:
    """The answer of a route that may tell events; `describe` is told of their messages too."""
    content = {"text/event-stream": {"schema": {"$ref": COMPONENTS + message.__name__}}}
    return {200: {"description": what, "content": content}}


def describe(app: FastAPI, named: Sequence[type[BaseModel]]) -> None:
    """Any of the schemes opens every route, and a server without keys needs none.

    Args:
        named: what `form` and `stream` refer to.
    """
    plain = app.openapi
    _, more = models_json_schema([(model, "validation") for model in named], ref_template=COMPONENTS + "{model}")

    def openapi() -> dict[str, Any]:
        described = plain()
        described["components"]["schemas"] = more["$defs"] | described["components"]["schemas"]
        described["components"]["securitySchemes"] = SCHEMES
        described["security"] = [{}, *({name: []} for name in SCHEMES)]
        return described

    app.openapi = openapi
