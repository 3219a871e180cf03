"""The tensors of one part, from their ldm names and shapes to diffusers', and back.

Nothing is copied on the way in: what comes out are views, renamed. On the way out, a tensor of the ldm layout is one or
several of ours below each other (OpenCLIP's fused attention input), so that they too are copied only when written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safelight.errors import CorruptModel
from safelight.models.weights.ldm_names import (
    IN_PROJ,
    Modules,
    open_clip_modules,
    rename,
    turned,
    unet_modules,
    vae_modules,
)
from safelight.models.weights.mmdit_names import LAYOUTS, from_original
from safelight.models.weights.single_file import T5, T5_PARTS, TEXT_PARTS, UNET, VAE, vae_prefix

Tensors = Mapping[str, Tensor]
Stacked = Mapping[str, Sequence[Tensor]]
"""By ldm name, what stands below each other in that tensor."""
Config = Mapping[str, Any]

POSITIONS, POSITIONS_THERE = "text_model.embeddings.position_embedding.weight", "positional_embedding"
PROJECTION, PROJECTION_THERE = "text_projection.weight", "text_projection"


def from_ldm(tensors: Tensors, part: str, *, family: str, config: Config) -> dict[str, Tensor]:
    """The part's tensors under diffusers' names; `tensors` is the whole file.

    Raises:
        CorruptModel: the network has tensors that its kind of network does not have.
    """
    match part:
        case "unet":
            return unet_from_ldm(beginning(tensors, UNET), unet_modules(config))
        case "transformer":
            return from_original(beginning(tensors, UNET), LAYOUTS[family](config))
        case "vae":
            return vae_from_ldm(beginning(tensors, vae_prefix(tensors)), vae_modules(config))
        case _ if part == T5_PARTS.get(family):
            return beginning(tensors, T5)
        case _:
            about = TEXT_PARTS[family][part]
            inner = beginning(tensors, about.prefix)
            if about.has_open_clip_names:
                return open_clip_from_ldm(inner, config)
            # What Stable Diffusion 3 has of ViT-L may come without its projection, which then changes nothing.
            return {PROJECTION: torch.eye(config["hidden_size"])} | inner if about.projects else inner


def beginning(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def unet_from_ldm(tensors: Tensors, modules: Modules) -> dict[str, Tensor]:
    ours = turned(modules)
    renamed = {name: rename(name, ours) for name in tensors}
    if unknown := [name for name, ours in renamed.items() if ours is None]:
        raise CorruptModel(
            f"the network has {len(unknown)} tensors that Stable Diffusion's does not have, "
            f"the first is {UNET}{unknown[0]}"
        )
    return {name: tensors[theirs] for theirs, name in renamed.items() if name is not None}


def vae_from_ldm(tensors: Tensors, modules: Modules) -> dict[str, Tensor]:
    """What it was trained with (`loss.`) is left out."""
    ours = turned(modules)
    renamed = {name: tensor for theirs, tensor in tensors.items() if (name := rename(theirs, ours)) is not None}
    return {name: linear(tensor) if is_projection(name) else tensor for name, tensor in renamed.items()}


def is_projection(name: str) -> bool:
    return ".attentions." in name and ".group_norm." not in name and name.endswith(".weight")


def linear(convolution: Tensor) -> Tensor:
    """The weights of a convolution of one pixel (or one sample) as those of a linear layer."""
    return convolution.flatten(1) if set(convolution.shape[2:]) <= {1} else convolution


def open_clip_from_ldm(tensors: Tensors, config: Config) -> dict[str, Tensor]:
    ours = turned(open_clip_modules(config))
    found = {name: tensor for theirs, tensor in tensors.items() if (name := rename(theirs, ours)) is not None}
    for layer in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            fused = tensors.get(f"transformer.resblocks.{layer}.attn.in_proj_{kind}")
            if fused is not None:
                names = [f"text_model.encoder.layers.{layer}.{place}.{kind}" for place in IN_PROJ]
                found |= zip(names, fused.chunk(len(IN_PROJ)), strict=False)
    if POSITIONS_THERE in tensors:
        found[POSITIONS] = tensors[POSITIONS_THERE]
    if PROJECTION_THERE in tensors and "CLIPTextModelWithProjection" in config["architectures"]:
        found[PROJECTION] = tensors[PROJECTION_THERE].T
    return found


def to_ldm(tensors: Tensors, part: str, *, family: str, config: Config) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """The part's tensors under their names in a single file, in the order of `tensors`.

    Raises:
        CorruptModel: the layout has no name for one of them.
    """
    match part:
        case "unet":
            yield from plainly(tensors, unet_modules(config), UNET)
        case "vae":
            for name, (tensor,) in plainly(tensors, vae_modules(config), VAE):
                yield name, (tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor,)
        case _:
            about = TEXT_PARTS[family][part]
            stacked = open_clip_to_ldm(tensors, config) if about.open_clip else clip_to_ldm(tensors)
            yield from ((about.prefix + name, parts) for name, parts in stacked.items())


def plainly(tensors: Tensors, modules: Modules, prefix: str) -> Iterator[tuple[str, Sequence[Tensor]]]:
    for name, tensor in tensors.items():
        theirs = rename(name, modules)
        if theirs is None:
            raise CorruptModel(f"the single-file layout has no name for {name}: keep this checkpoint as a folder")
        yield prefix + theirs, (tensor,)


def clip_to_ldm(tensors: Tensors) -> Stacked:
    return {f"text_model.{name.removeprefix('text_model.')}": (tensor,) for name, tensor in tensors.items()}


def open_clip_to_ldm(tensors: Tensors, config: Config) -> Stacked:
    modules = open_clip_modules(config)
    found: dict[str, Sequence[Tensor]] = {}
    for layer in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            places = [f"text_model.encoder.layers.{layer}.{place}.{kind}" for place in IN_PROJ]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = [tensors[place] for place in places]
    for name, tensor in tensors.items():
        if theirs := rename(name, modules):
            found[theirs] = (tensor,)
    found[POSITIONS_THERE] = (tensors[POSITIONS],)
    if PROJECTION in tensors:
        found[PROJECTION_THERE] = (tensors[PROJECTION].T,)
    return found
