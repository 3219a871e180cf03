"""/openapi.json beyond what the routes say of themselves: where a key goes."""

from typing import Any

from fastapi import FastAPI

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key made by `safelight keys create`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "basic": {"type": "http", "scheme": "basic", "description": "The key is the password; any user name does."},
}


def describe(app: FastAPI) -> None:
    """Any of the schemes opens every route, and a server without keys needs none."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        described = plain()
        described["components"]["securitySchemes"] = SCHEMES
        described["security"] = [{}, *({name: []} for name in SCHEMES)]
        return described

    app.openapi = openapi
