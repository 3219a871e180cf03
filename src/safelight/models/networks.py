"""The network classes of diffusers and transformers, imported quickly (docs/decisions/0004-cold-start.md).

The ordinary import also loads torch's compiler, peft, scipy's optimisers and every other network diffusers has:
more than half of the time from shell to picture. Those are held off while the few files we need load, and the
interpreter is left as if they had never been asked for, so that code which wants them later finds them whole.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

UNREAD_PACKAGES = ("diffusers.models.unets", "diffusers.models.transformers", "diffusers.models.autoencoders")
"""Packages whose `__init__` imports every network there is; their files are imported one by one instead."""
UNDECIDED = ("diffusers.schedulers", "diffusers.loaders.lora_", "diffusers.hooks.layerwise_casting")
"""Modules, by how their names begin, that decide at import whether peft or scipy exists. What was imported of them is
dropped afterwards, so that the next import decides anew."""


@dataclass(frozen=True, slots=True)
class NetworkClasses:
    """Builders from a component's configuration; what they build has shapes but no memory yet."""

    unet: Callable[[Mapping[str, Any]], nn.Module]
    vae: Callable[[Mapping[str, Any]], nn.Module]
    text_encoder: Callable[[Mapping[str, Any]], nn.Module]
    image_encoder: Callable[[Mapping[str, Any]], nn.Module]


@cache
def network_classes() -> NetworkClasses:
    """UNet2DConditionModel, AutoencoderKL, and CLIP's text encoder with or without its projection."""
    with collection_off():
        if "diffusers.models.unets" in sys.modules:
            return import_classes()
        with needless_imports_held_off():
            return import_classes()


def import_classes() -> NetworkClasses:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig
    from transformers.models.clip.modeling_clip import (
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionModelWithProjection,
    )

    def text_encoder(config: Mapping[str, Any]) -> nn.Module:
        projected = "CLIPTextModelWithProjection" in (config.get("architectures") or [])
        return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))

    return NetworkClasses(
        unet=without_memory(UNet2DConditionModel.from_config),
        vae=without_memory(AutoencoderKL.from_config),
        text_encoder=without_memory(text_encoder),
        image_encoder=without_memory(lambda config: CLIPVisionModelWithProjection(CLIPVisionConfig(**config))),
    )


def without_memory(build: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], nn.Module]:
    def on_meta(config: Mapping[str, Any]) -> nn.Module:
        with torch.device("meta"), Unfilled():
            return build(config)

    return on_meta


class Unfilled(TorchFunctionMode):
    """Leaves out random initial values. On the meta device they are nothing, but asking for them loads the compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
        ):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def collection_off() -> Iterator[None]:
    """Importing makes a million objects that stay; looking for garbage among them only costs."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def needless_imports_held_off() -> Iterator[None]:
    held_off: dict[str, ModuleType | None] = {}
    if "torch._dynamo" not in sys.modules:
        held_off["torch._dynamo"] = sys.modules["torch._dynamo"] = compiler_stand_in()

    import diffusers.models
    from transformers.utils.import_utils import is_scipy_available

    held_off |= {name: unread_package(name, diffusers.models.__path__[0]) for name in UNREAD_PACKAGES}
    if "scipy" not in sys.modules:
        held_off["scipy"] = None
    modules: dict[str, ModuleType | None] = sys.modules  # pyright: ignore[reportAssignmentType]
    modules.update(held_off)  # None is Python's own way to say "not to be imported"
    asked_by_diffusers = import_module("diffusers.utils.import_utils").__dict__
    found = {name: asked_by_diffusers[name] for name in ("_peft_available", "_scipy_available")}
    asked_by_diffusers.update(dict.fromkeys(found, False))
    is_scipy_available.cache_clear()
    try:
        yield
    finally:
        asked_by_diffusers.update(found)
        for name in [name for name in sys.modules if name in held_off or name.startswith(UNDECIDED)]:
            del sys.modules[name]
        is_scipy_available.cache_clear()


def unread_package(name: str, parent: str) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = [str(Path(parent) / name.rpartition(".")[2])]
    return package


def compiler_stand_in() -> ModuleType:
    """torch._dynamo as uncompiled code needs it: decorators that change nothing, and its files by name."""
    stand_in = ModuleType("torch._dynamo")
    stand_in.__path__ = [str(Path(torch.__path__[0]) / "_dynamo")]

    def leave_as_is(function: Any = None, *_: Any, **__: Any) -> Any:
        return leave_as_is if function is None else function

    for decorator in ("allow_in_graph", "disable", "assume_constant_result"):
        setattr(stand_in, decorator, leave_as_is)
    return stand_in
