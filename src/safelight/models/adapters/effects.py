"""The effects there are, by the name of their field, and those of plugins."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from safelight.errors import SafelightError
from safelight.models.adapters.control_effect import ControlEffect
from safelight.models.adapters.effect import Active, Effect
from safelight.models.adapters.freeu import FreeUEffect
from safelight.models.adapters.ip_effect import IpAdapterEffect
from safelight.models.adapters.lora_effect import LoraEffect
from safelight.models.adapters.pag import PagEffect
from safelight.models.adapters.regions import RegionsEffect
from safelight.models.adapters.sag import SagEffect
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.plugins import Plugin, Plugins

EFFECTS: dict[str, Callable[[Catalogue], Effect]] = {
    "loras": LoraEffect,
    "controls": ControlEffect,
    "picture_prompts": IpAdapterEffect,
    "regions": RegionsEffect,
    "freeu": FreeUEffect,
    "pag": PagEffect,
    "sag": SagEffect,
}


def open_effects(catalogue: Catalogue, plugins: Plugins) -> dict[str, Effect]:
    """One of each, which finds its files in the catalogue."""

    def make(plugin: Plugin, loaded: Any) -> Effect:
        if plugin.name in EFFECTS:
            raise SafelightError("one of safelight's own effects has its name")
        effect = require_effect(plugin.name, loaded(catalogue))
        plugin.json_schema = effect.request and effect.request.model_json_schema()
        return effect

    return {name: make(catalogue) for name, make in EFFECTS.items()} | plugins.load("effect", make)


def require_effect(name: str, effect: Any) -> Effect:
    """The effect, if it has the shape of one.

    Raises:
        SafelightError: what it lacks.
    """
    kind = type(effect)
    if Effect not in kind.__mro__:
        raise SafelightError(f"{kind.__name__} is no subclass of safelight.models.adapters.effect.Effect")
    if effect.name != name:
        raise SafelightError(f"it is registered as {name!r}, and its name is {effect.name!r}")
    if not (isinstance(effect.request, type) and issubclass(effect.request, BaseModel)):
        raise SafelightError(f"{kind.__name__}.request is no pydantic model")
    required = [(Active, "row"), (Active, "hook")] if Active in kind.__mro__ else [(Effect, "load")]
    for protocol, method in required:
        if getattr(kind, method) is getattr(protocol, method):
            raise SafelightError(f"{kind.__name__} has no method {method}")
    return effect
