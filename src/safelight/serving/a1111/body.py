"""What the bodies of AUTOMATIC1111's clients have in common."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, model_validator

from safelight.spec.fields import Fit
from safelight.validation import CheckedModel

FITS: dict[int, Fit] = {0: "stretch", 1: "crop", 2: "pad"}
"""resize_mode."""
RED_DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzIAAAAA1BMVEXIKChQLvxyAAAAC0lEQVR42mNgQAUAABAAAaoZ"
    "+IIAAAAASUVORK5CYII="
)
"""A picture for /openapi.json to give as an example: 8x8."""


def nullable(schema: dict[str, Any]) -> None:
    """Every field that may be left out may be null."""
    for name, said in schema["properties"].items():
        if name not in schema.get("required", ()):
            schema["properties"][name] = {"anyOf": [said, {"type": "null"}]}


class A1111Body(CheckedModel):
    """A body as AUTOMATIC1111 reads it: null leaves a field at its default, and unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=nullable, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {name: value for name, value in values.items() if value is not None}
        return values
