"""The network classes of diffusers and transformers, imported quickly (docs/decisions/0004-cold-start.md).

The ordinary import also loads torch's compiler, peft, scipy's optimisers and every other network diffusers has:
more than half of the time from shell to picture. Those are held off while the few files we need load, and the
interpreter is left as if they had never been asked for, so that code which wants them later finds them whole.
"""

import gc
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")
UNREAD_PACKAGES = (
    "diffusers.models.unets",
    "diffusers.models.transformers",
    "diffusers.models.autoencoders",
    "diffusers.models.controlnets",
)
"""Packages whose `__init__` imports every network there is; their files are imported one by one instead."""
UNDECIDED = ("diffusers.schedulers", "diffusers.loaders.lora_", "diffusers.hooks.layerwise_casting")
"""Modules, by how their names begin, that decide at import whether peft or scipy exists. What was imported of them is
dropped afterwards, so that the next import decides anew."""
IMPORTING = threading.RLock()
"""Held while imports are held off: the list of modules is everybody's."""


@dataclass(frozen=True, slots=True)
class NetworkClasses:
    """Builders from a component's configuration; what they build has shapes but no memory yet."""

    unet: Callable[[Mapping[str, Any]], nn.Module]
    vae: Callable[[Mapping[str, Any]], nn.Module]
    text_encoder: Callable[[Mapping[str, Any]], nn.Module]


@dataclass(frozen=True, slots=True)
class TransformerClasses:
    """The same, for the families whose network is a transformer; imported when the first of them is loaded."""

    sd3: Callable[[Mapping[str, Any]], nn.Module]
    flux: Callable[[Mapping[str, Any]], nn.Module]
    t5: Callable[[Mapping[str, Any]], nn.Module]


@cache
def network_classes() -> NetworkClasses:
    """UNet2DConditionModel, AutoencoderKL, and CLIP's text encoder with or without its projection."""
    return quickly(import_classes)


@dataclass(frozen=True, slots=True)
class ControlClasses:
    """The same for what leads a picture beside its prompt."""

    controlnet: Callable[[Mapping[str, Any]], nn.Module]
    controlnet_union: Callable[[Mapping[str, Any]], nn.Module]
    t2i_adapter: Callable[[Mapping[str, Any]], nn.Module]
    image_encoder: Callable[[Mapping[str, Any]], nn.Module]
    projections: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]]
    """From an image encoder's states to the tokens of an IP-Adapter; `base`, `plus` and `full`."""


@cache
def control_classes() -> ControlClasses:
    """ControlNetModel, ControlNetUnionModel, T2IAdapter, CLIP's image encoder, and the projections of IP-Adapters."""
    return quickly(import_control_classes)


def quickly(load: Callable[[], T]) -> T:
    with IMPORTING, collection_off():
        if "diffusers.models.unets" in sys.modules:
            return load()
        with needless_imports_held_off():
            return load()


@cache
def transformer_classes() -> TransformerClasses:
    """SD3Transformer2DModel, FluxTransformer2DModel and T5EncoderModel."""
    return quickly(import_transformer_classes)


def denoiser_class(family: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    """What builds the network that denoises, for a family by name."""
    match family:
        case "sd3":
            return transformer_classes().sd3
        case "flux":
            return transformer_classes().flux
        case _:
            return network_classes().unet


def import_classes() -> NetworkClasses:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import (
        CLIPTextModel,
        CLIPTextModelWithProjection,
    )

    def text_encoder(config: Mapping[str, Any]) -> nn.Module:
        projected = "CLIPTextModelWithProjection" in (config.get("architectures") or [])
        return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))

    return NetworkClasses(
        unet=without_memory(UNet2DConditionModel.from_config),
        vae=without_memory(AutoencoderKL.from_config),
        text_encoder=without_memory(text_encoder),
    )


def import_control_classes() -> ControlClasses:
    from diffusers.models.adapter import T2IAdapter
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
    from diffusers.models.embeddings import (
        ImageProjection,
        IPAdapterFullImageProjection,
        IPAdapterPlusImageProjection,
    )
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    projections = {"base": ImageProjection, "plus": IPAdapterPlusImageProjection, "full": IPAdapterFullImageProjection}
    return ControlClasses(
        controlnet=without_memory(ControlNetModel.from_config),
        controlnet_union=without_memory(ControlNetUnionModel.from_config),
        t2i_adapter=without_memory(T2IAdapter.from_config),
        image_encoder=without_memory(lambda config: CLIPVisionModelWithProjection(CLIPVisionConfig(**config))),
        projections={
            name: without_memory(lambda config, kind=kind: kind(**config)) for name, kind in projections.items()
        },
    )


def import_transformer_classes() -> TransformerClasses:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    return TransformerClasses(
        sd3=without_memory(without_positions(SD3Transformer2DModel.from_config)),
        flux=without_memory(FluxTransformer2DModel.from_config),
        t5=without_memory(lambda config: T5EncoderModel(T5Config(**config))),
    )


one_without_positions = threading.Lock()


def without_positions(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Leaves out Stable Diffusion 3's table of positions, which is in the file, for the reason that `Unfilled` has."""

    def build_it(config: Any) -> Any:
        embeddings: Any = import_module("diffusers.models.embeddings")
        with one_without_positions:
            found = embeddings.get_2d_sincos_pos_embed
            embeddings.get_2d_sincos_pos_embed = lambda width, side, **_: torch.empty(side**2, width)
            try:
                return build(config)
            finally:
                embeddings.get_2d_sincos_pos_embed = found

    return build_it


def without_memory(build: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], nn.Module]:
    def on_meta(config: Mapping[str, Any]) -> nn.Module:
        with torch.device("meta"), SkipInit():
            return build(config)

    return on_meta


class SkipInit(TorchFunctionMode):
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
