"""The network classes of diffusers and transformers, with a fast import (docs/decisions/0004-cold-start.md).

The ordinary import also loads torch's compiler, peft, scipy's optimisers and every other network of diffusers: more
than half of the time from the shell to an image. Those imports are blocked while the few files needed here load.
Afterwards `sys.modules` is as if they had never been requested, so that later code can import them normally.
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
STUB_PACKAGES = (
    "diffusers.models.unets",
    "diffusers.models.transformers",
    "diffusers.models.autoencoders",
    "diffusers.models.controlnets",
)
"""Packages whose `__init__` imports every network; a stub replaces it, and their files are imported one by one."""
IMPORT_TIME_CHECKS = ("diffusers.schedulers", "diffusers.loaders.lora_", "diffusers.hooks.layerwise_casting")
"""Prefixes of modules that check at import whether peft or scipy exists. Those imported are removed from `sys.modules`
afterwards, so that the next import checks again."""
IMPORTING = threading.RLock()
"""Held while imports are blocked: `sys.modules` is shared by all threads."""


@dataclass(frozen=True, slots=True)
class NetworkClasses:
    """Functions that build a network from its configuration, on the meta device."""

    unet: Callable[[Mapping[str, Any]], nn.Module]
    vae: Callable[[Mapping[str, Any]], nn.Module]
    text_encoder: Callable[[Mapping[str, Any]], nn.Module]


@dataclass(frozen=True, slots=True)
class TransformerClasses:
    """Builders for the families whose network is a transformer; imported when the first of them is loaded."""

    sd3: Callable[[Mapping[str, Any]], nn.Module]
    flux: Callable[[Mapping[str, Any]], nn.Module]
    t5: Callable[[Mapping[str, Any]], nn.Module]


@cache
def network_classes() -> NetworkClasses:
    """Return UNet2DConditionModel, AutoencoderKL, and CLIP's text encoder with or without its projection."""
    return import_fast(import_classes)


@dataclass(frozen=True, slots=True)
class ControlClasses:
    """Builders for ControlNets, T2I-Adapters and IP-Adapters."""

    controlnet: Callable[[Mapping[str, Any]], nn.Module]
    controlnet_union: Callable[[Mapping[str, Any]], nn.Module]
    t2i_adapter: Callable[[Mapping[str, Any]], nn.Module]
    image_encoder: Callable[[Mapping[str, Any]], nn.Module]
    projections: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]]
    """From an image encoder's states, or a face embedding, to the tokens of an IP-Adapter, by the adapter's kind."""


@cache
def control_classes() -> ControlClasses:
    """Return ControlNetModel, ControlNetUnionModel, T2IAdapter, CLIP's image encoder and IP-Adapter projections."""
    return import_fast(import_control_classes)


def import_fast(load: Callable[[], T]) -> T:
    with IMPORTING, collection_off():
        if "diffusers.models.unets" in sys.modules:
            return load()
        with needless_imports_blocked():
            return load()


@cache
def transformer_classes() -> TransformerClasses:
    """Return SD3Transformer2DModel, FluxTransformer2DModel and T5EncoderModel."""
    return import_fast(import_transformer_classes)


def denoiser_class(family: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    """Return the builder of a family's denoising network."""
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
        unet=on_meta_device(UNet2DConditionModel.from_config),
        vae=on_meta_device(AutoencoderKL.from_config),
        text_encoder=on_meta_device(text_encoder),
    )


def import_control_classes() -> ControlClasses:
    from diffusers.models.adapter import T2IAdapter
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
    from diffusers.models.embeddings import (
        ImageProjection,
        IPAdapterFaceIDImageProjection,
        IPAdapterFaceIDPlusImageProjection,
        IPAdapterFullImageProjection,
        IPAdapterPlusImageProjection,
    )
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    projections = {
        "base": ImageProjection,
        "plus": IPAdapterPlusImageProjection,
        "full": IPAdapterFullImageProjection,
        "face": IPAdapterFaceIDImageProjection,
        "face-plus": IPAdapterFaceIDPlusImageProjection,
    }
    return ControlClasses(
        controlnet=on_meta_device(ControlNetModel.from_config),
        controlnet_union=on_meta_device(ControlNetUnionModel.from_config),
        t2i_adapter=on_meta_device(T2IAdapter.from_config),
        image_encoder=on_meta_device(lambda config: CLIPVisionModelWithProjection(CLIPVisionConfig(**config))),
        projections={
            name: on_meta_device(lambda config, kind=kind: kind(**config)) for name, kind in projections.items()
        },
    )


def import_transformer_classes() -> TransformerClasses:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    return TransformerClasses(
        sd3=on_meta_device(skipping_positions(SD3Transformer2DModel.from_config)),
        flux=on_meta_device(FluxTransformer2DModel.from_config),
        t5=on_meta_device(lambda config: T5EncoderModel(T5Config(**config))),
    )


positions_lock = threading.Lock()


def skipping_positions(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Skip computing Stable Diffusion 3's position table, which is in the file, for the reason given in `SkipInit`."""

    def build_without_positions(config: Any) -> Any:
        embeddings: Any = import_module("diffusers.models.embeddings")
        with positions_lock:
            found = embeddings.get_2d_sincos_pos_embed
            embeddings.get_2d_sincos_pos_embed = lambda width, side, **_: torch.empty(side**2, width)
            try:
                return build(config)
            finally:
                embeddings.get_2d_sincos_pos_embed = found

    return build_without_positions


def on_meta_device(build: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], nn.Module]:
    def on_meta(config: Mapping[str, Any]) -> nn.Module:
        with torch.device("meta"), SkipInit():
            return build(config)

    return on_meta


class SkipInit(TorchFunctionMode):
    """Skip random initialisation. On the meta device it has no effect, but calling it loads torch's compiler."""

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
    """Turn garbage collection off: importing makes a million permanent objects, and scanning them is wasted time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def needless_imports_blocked() -> Iterator[None]:
    blocked: dict[str, ModuleType | None] = {}
    if "torch._dynamo" not in sys.modules:
        blocked["torch._dynamo"] = sys.modules["torch._dynamo"] = compiler_stub()

    import diffusers.models
    from transformers.utils.import_utils import is_scipy_available

    blocked |= {name: stub_package(name, diffusers.models.__path__[0]) for name in STUB_PACKAGES}
    if "scipy" not in sys.modules:
        blocked["scipy"] = None
    modules: dict[str, ModuleType | None] = sys.modules  # pyright: ignore[reportAssignmentType]
    modules.update(blocked)  # None makes Python refuse the import
    diffusers_flags = import_module("diffusers.utils.import_utils").__dict__
    found = {name: diffusers_flags[name] for name in ("_peft_available", "_scipy_available")}
    diffusers_flags.update(dict.fromkeys(found, False))
    is_scipy_available.cache_clear()
    try:
        yield
    finally:
        diffusers_flags.update(found)
        for name in [name for name in sys.modules if name in blocked or name.startswith(IMPORT_TIME_CHECKS)]:
            del sys.modules[name]
        is_scipy_available.cache_clear()


def stub_package(name: str, parent: str) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = [str(Path(parent) / name.rpartition(".")[2])]
    return package


def compiler_stub() -> ModuleType:
    """Return a stub of torch._dynamo for uncompiled code: decorators that change nothing, and its submodules' path."""
    stub = ModuleType("torch._dynamo")
    stub.__path__ = [str(Path(torch.__path__[0]) / "_dynamo")]

    def leave_as_is(function: Any = None, *_: Any, **__: Any) -> Any:
        return leave_as_is if function is None else function

    for decorator in ("allow_in_graph", "disable", "assume_constant_result"):
        setattr(stub, decorator, leave_as_is)
    return stub
