"""Plugins of a draft or a spec: their values, checked by their own models, and the packages that they come from."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from safelight.diffusion.samplers import find_sampler
from safelight.errors import InvalidField
from safelight.spec import Denoised, Draft, Upscale
from safelight.spec.parts import PinnedPlugin
from safelight.studio import Studio
from safelight.validation import reason_of, to_invalid_fields

S = TypeVar("S", bound=Denoised | Upscale)


def pin_plugins(wanted: Draft | Denoised, studio: Studio) -> tuple[PinnedPlugin, ...]:
    """The plugins of its effects and of its sampler."""
    pins = [studio.plugins.pin("effect", name) for name in sorted(wanted.effects)]
    if wanted.sampler is not None:
        pins.append(studio.plugins.pin("sampler", find_sampler(wanted.sampler).plain))
    return tuple(pin for pin in pins if pin)


def pin_upscaler(method: str, studio: Studio) -> tuple[PinnedPlugin, ...]:
    pin = studio.plugins.pin("upscaler", method)
    return (pin,) if pin else ()


def as_installed(spec: S, studio: Studio) -> S:
    """The spec as the plugins that are installed now draw it: with their versions, and values as they check them.

    Raises:
        UnsupportedOption: a plugin is not here, failed, is off, or another package has its name.
        InvalidField: the plugin that is here does not take the values.
    """
    for pinned in spec.plugins:
        studio.plugins.require_same(pinned)
    if isinstance(spec, Upscale):
        return spec.model_copy(update={"plugins": pin_upscaler(spec.method, studio)}) if spec.plugins else spec
    if not (spec.plugins or spec.effects):
        return spec
    return spec.model_copy(update={"effects": checked_effects(spec, studio), "plugins": pin_plugins(spec, studio)})


def checked_effects(wanted: Draft | Denoised, studio: Studio) -> dict[str, dict[str, Any]]:
    """The values of plugins' effects, with defaults filled in.

    Raises:
        UnsupportedOption: no plugin here adds the effect.
        InvalidField: `effects.NAME.FIELD`, and what is wrong.
    """
    checked: dict[str, dict[str, Any]] = {}
    for name, values in wanted.effects.items():
        studio.plugins.require("effect", name)
        request = studio.effects[name].request
        assert request is not None, "`open_effects` checks that"
        checked[name] = checked_values(name, request, values)
    return checked


def checked_values(name: str, request: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON, with all fields of the model."""
    try:
        found = request.model_validate(values, extra="forbid").model_dump(mode="json")
        json.dumps(found, allow_nan=False)
    except ValidationError as error:
        known = list(request.model_fields)
        problems = [
            {**one, "loc": ("effects", name, *one["loc"]), "type": "problem", "msg": reason_of(one, known)}
            for one in error.errors(include_url=False)
        ]
        raise to_invalid_fields(problems).simplified() from None
    except ValueError:
        raise InvalidField(f"effects.{name}", "numbers must be finite") from None
    return found
