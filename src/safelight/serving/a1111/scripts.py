"""`alwayson_scripts`: AUTOMATIC1111's extensions by name, and the parts of its own page that are scripts there.

A payload copied from the page names every part, those that are off too. What is off is passed over. What the built-in
parts say counts as it does there, in the place of fields that the body leaves out; where both speak, they must agree.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from safelight.errors import SafelightError, UnsupportedOption
from safelight.serving.a1111.body import A1111Body

CONTROLNET = "controlnet"
DYNAMIC_PROMPTS = "dynamic prompts"
"""How the extension's name begins, whatever its version."""


class Script(A1111Body):
    """What is said to one of them; some clients send one argument in the place of a list of it."""

    args: list[Any] = Field(default_factory=list[Any])

    @model_validator(mode="before")
    @classmethod
    def listed(cls, said: Any) -> Any:
        values = {"args": said} if isinstance(said, list) or said is None else said
        if isinstance(values, Mapping) and isinstance(one := values.get("args"), Mapping):
            return {**values, "args": [one] if one else []}
        return values

    @property
    def is_idle(self) -> bool:
        """Clients name their extensions also where they are off: with no arguments, false first, or not enabled."""
        if not self.args:
            return True
        return self.args[0] is False or all(
            not unit or (isinstance(unit, Mapping) and unit.get("enabled") is False) for unit in self.args
        )


def fields_of(name: str, args: list[Any]) -> dict[str, Any]:
    """What a built-in part of the page says, by the fields of the body."""
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
    """The body with what only a part of the page says."""
    said: dict[str, Any] = {}
    scripts: Any = values.get("alwayson_scripts")
    for name, script in scripts.items() if isinstance(scripts, Mapping) else ():
        args: Any = script.get("args") if isinstance(script, Mapping) else script
        said |= fields_of(str(name).casefold(), args if isinstance(args, list) else [])
    return said | {name: value for name, value in values.items() if value is not None}


def disagreements(name: str, script: Script, body: Mapping[str, Any]) -> Iterator[SafelightError]:
    """Where the body says otherwise."""
    for field, value in fields_of(name.casefold(), script.args).items():
        if value is not None and body[field] != value:
            error = UnsupportedOption(
                f"alwayson_scripts.{name}", f"it says {field} {value!r}, and the body says {body[field]!r}", field
            )
            error.status = 422
            yield error


def no_script(where: str, name: str) -> SafelightError:
    error = UnsupportedOption(where, f"no script {name!r}; there are ControlNet and, for img2img, SD upscale")
    error.status = 422
    return error
