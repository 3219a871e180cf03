"""Adds to /openapi.json what FastAPI cannot derive: authentication, and the schemas of forms and streams."""

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
"""The responses of a route that answers null."""
PICTURE = {"schema": {"type": "string", "format": "binary"}}


def form(body: type[BaseModel]) -> dict[str, Any]:
    """The request body of a multipart route that reads its own form; pass the model to `describe` too."""
    content = {"multipart/form-data": {"schema": {"$ref": COMPONENTS + body.__name__}}}
    return {"requestBody": {"content": content, "required": True}}


def stream(message: type[BaseModel], description: str) -> dict[int | str, dict[str, Any]]:
    """The response of a route that may stream events; pass the message model to `describe` too."""
    content = {"text/event-stream": {"schema": {"$ref": COMPONENTS + message.__name__}}}
    return {200: {"description": description, "content": content}}


def describe(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Extend the OpenAPI document: every route takes any of the schemes, or none on a server without keys.

    Args:
        models: the models that `form` and `stream` refer to.
    """
    original = app.openapi
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=COMPONENTS + "{model}")

    def openapi() -> dict[str, Any]:
        described = original()
        described["components"]["schemas"] = schemas["$defs"] | described["components"]["schemas"]
        described["components"]["securitySchemes"] = SCHEMES
        described["security"] = [{}, *({name: []} for name in SCHEMES)]
        return described

    app.openapi = openapi
