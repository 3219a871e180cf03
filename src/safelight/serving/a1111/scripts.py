"""`alwayson_scripts`: AUTOMATIC1111's extensions by name, and the built-in panels of its page, which are scripts too.

A payload copied from the page names every panel, including disabled ones, which are ignored. As there, values of the
built-in panels replace fields that the body omits; if both are given, they must be equal.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from safelight.errors import SafelightError, UnsupportedOption
from safelight.serving.a1111.body import A1111Body

CONTROLNET = "controlnet"
DYNAMIC_PROMPTS = "dynamic prompts"
"""The extension's name, without its version."""


class Script(A1111Body):
    """The arguments of a script; some clients send a single argument instead of a list."""

    args: list[Any] = Field(default_factory=list[Any])

    @model_validator(mode="before")
    @classmethod
    def wrap_arguments(cls, value: Any) -> Any:
        values = {"args": value} if isinstance(value, list) or value is None else value
        if isinstance(values, Mapping) and isinstance(one := values.get("args"), Mapping):
            return {**values, "args": [one] if one else []}
        return values

    @property
    def is_idle(self) -> bool:
        """Whether the script is disabled: clients name it even then, without arguments, or with a leading false."""
        if not self.args:
            return True
        return self.args[0] is False or all(
            not unit or (isinstance(unit, Mapping) and unit.get("enabled") is False) for unit in self.args
        )


def fields_of(name: str, args: list[Any]) -> dict[str, Any]:
    """The values of a built-in panel, by the fields of the body."""
    match name, args:
        case "sampler", [steps, sampler, scheduler]:
            return {"steps": steps, "sampler_name": sampler, "scheduler": scheduler}
        case "seed", [seed, False, *_]:
            return {"seed": seed}
        case "seed", [seed, True, subseed, strength, width, height]:
            resized = {"seed_resize_from_w": width, "seed_resize_from_h": height}
            return {"seed": seed, "subseed": subseed, "subseed_strength": strength} | resized
        case "refiner", [True, checkpoint, switch]:
            return {"refiner_checkpoint": checkpoint, "refiner_switch_at": switch}
        case _:
            return {}


def with_panels(values: Mapping[str, Any]) -> dict[str, Any]:
    """The body, extended by values that only a panel has."""
    value: dict[str, Any] = {}
    scripts: Any = values.get("alwayson_scripts")
    for name, script in scripts.items() if isinstance(scripts, Mapping) else ():
        args: Any = script.get("args") if isinstance(script, Mapping) else script
        value |= fields_of(str(name).casefold(), args if isinstance(args, list) else [])
    return value | {name: value for name, value in values.items() if value is not None}


def disagreements(name: str, script: Script, body: Mapping[str, Any]) -> Iterator[SafelightError]:
    """Yield an error for each panel value that differs from the body."""
    for field, value in fields_of(name.casefold(), script.args).items():
        if value is not None and body[field] != value:
            error = UnsupportedOption(
                f"alwayson_scripts.{name}", f"{field} is {value!r}, but the body's is {body[field]!r}", field
            )
            error.status = 422
            yield error


def no_script(where: str, name: str) -> SafelightError:
    error = UnsupportedOption(where, f"no script {name!r}; supported are ControlNet and, for img2img, SD upscale")
    error.status = 422
    return error
