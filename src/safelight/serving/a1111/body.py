"""The base class of AUTOMATIC1111's request bodies."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, model_validator

from safelight.spec.fields import Fit
from safelight.validation import CheckedModel

FITS: dict[int, Fit] = {0: "stretch", 1: "crop", 2: "pad"}
"""Our `fit` by `resize_mode`."""
RED_DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzIAAAAA1BMVEXIKChQLvxyAAAAC0lEQVR42mNgQAUAABAAAaoZ"
    "+IIAAAAASUVORK5CYII="
)
"""An example picture for /openapi.json: 8x8 pixels."""


def nullable(schema: dict[str, Any]) -> None:
    """Make every optional field nullable in the schema."""
    for name, field_schema in schema["properties"].items():
        if name not in schema.get("required", ()):
            schema["properties"][name] = {"anyOf": [field_schema, {"type": "null"}]}


class A1111Body(CheckedModel):
    """A body as AUTOMATIC1111 reads it: null means the default, and unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=nullable, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {name: value for name, value in values.items() if value is not None}
        return values
