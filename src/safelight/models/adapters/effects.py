"""The effects there are, by the name of their field."""

from collections.abc import Callable

from safelight.models.adapters.control_effect import ControlEffect
from safelight.models.adapters.effect import Effect
from safelight.models.adapters.freeu import FreeUEffect
from safelight.models.adapters.ip_effect import IpAdapterEffect
from safelight.models.adapters.lora_effect import LoraEffect
from safelight.models.adapters.pag import PagEffect
from safelight.models.adapters.regions import RegionsEffect
from safelight.models.adapters.sag import SagEffect
from safelight.models.checkpoints.catalogue import Catalogue

EFFECTS: dict[str, Callable[[Catalogue], Effect]] = {
    "loras": LoraEffect,
    "controls": ControlEffect,
    "picture_prompts": IpAdapterEffect,
    "regions": RegionsEffect,
    "freeu": FreeUEffect,
    "pag": PagEffect,
    "sag": SagEffect,
}


def open_effects(catalogue: Catalogue) -> dict[str, Effect]:
    """One of each, which finds its files in the catalogue."""
    return {name: make(catalogue) for name, make in EFFECTS.items()}
