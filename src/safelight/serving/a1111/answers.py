"""The answers of AUTOMATIC1111's generation routes: pictures, and errors of all routes."""

from typing import Any

from pydantic import BaseModel


class A1111Error(BaseModel):
    """The body of an error; `detail` has the reason."""

    error: str
    detail: str
    body: str
    errors: str


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": A1111Error, "description": "What was wrong with the request."}
}


class PicturesAnswer(BaseModel):
    """The pictures, the request, and how they were made."""

    images: list[str]
    """Base64 of each picture's file; interrupted ones are omitted."""
    parameters: dict[str, Any]
    """The request, including defaults."""
    info: str
    """JSON: seeds, the model, and each picture's infotext."""
