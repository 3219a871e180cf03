"""Convert the tensors of one part from ldm names and shapes to diffusers', and back. Tensors may have any shape.

From ldm, the results are renamed views; nothing is copied. To ldm, a tensor is a list of our tensors to concatenate
(OpenCLIP's fused attention input), so that they are copied only when written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safelight.errors import CorruptModel
from safelight.models.weights.ldm_names import (
    IN_PROJ,
    Modules,
    inverted,
    open_clip_modules,
    rename,
    unet_modules,
    vae_modules,
)
from safelight.models.weights.mmdit_names import LAYOUTS, from_original
from safelight.models.weights.single_file import T5, T5_PARTS, TEXT_PARTS, UNET, VAE, vae_prefix

Tensors = Mapping[str, Tensor]
Stacked = Mapping[str, Sequence[Tensor]]
"""By ldm name, the tensors to concatenate along the first dimension."""
Config = Mapping[str, Any]

POSITIONS, LDM_POSITIONS = "text_model.embeddings.position_embedding.weight", "positional_embedding"
PROJECTION, LDM_PROJECTION = "text_projection.weight", "text_projection"


def from_ldm(tensors: Tensors, part: str, *, family: str, config: Config) -> dict[str, Tensor]:
    """Return the part's tensors (any shape) under diffusers' names; `tensors` is the whole file.

    Raises:
        CorruptModel: the network has tensors that this kind of network does not have.
    """
    match part:
        case "unet":
            return unet_from_ldm(with_prefix_removed(tensors, UNET), unet_modules(config))
        case "transformer":
            return from_original(with_prefix_removed(tensors, UNET), LAYOUTS[family](config))
        case "vae":
            return vae_from_ldm(with_prefix_removed(tensors, vae_prefix(tensors)), vae_modules(config))
        case _ if part == T5_PARTS.get(family):
            return with_prefix_removed(tensors, T5)
        case _:
            text_part = TEXT_PARTS[family][part]
            inner = with_prefix_removed(tensors, text_part.prefix)
            if text_part.has_open_clip_names:
                return open_clip_from_ldm(inner, config)
            # Stable Diffusion 3's ViT-L may lack its projection, which is then the identity.
            return {PROJECTION: torch.eye(config["hidden_size"])} | inner if text_part.has_projection else inner


def with_prefix_removed(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors (any shape) whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def unet_from_ldm(tensors: Tensors, modules: Modules) -> dict[str, Tensor]:
    """Rename the UNet's tensors (any shape); raises CorruptModel for tensors of another network."""
    ours = inverted(modules)
    renamed = {name: rename(name, ours) for name in tensors}
    if unknown := [name for name, ours in renamed.items() if ours is None]:
        raise CorruptModel(
            f"the network has {len(unknown)} tensors that Stable Diffusion's does not have, "
            f"the first is {UNET}{unknown[0]}"
        )
    return {name: tensors[theirs] for theirs, name in renamed.items() if name is not None}


def vae_from_ldm(tensors: Tensors, modules: Modules) -> dict[str, Tensor]:
    """Rename the VAE's tensors (any shape); those of the training loss (`loss.`) are left out."""
    ours = inverted(modules)
    renamed = {name: tensor for theirs, tensor in tensors.items() if (name := rename(theirs, ours)) is not None}
    return {name: to_linear(tensor) if is_projection(name) else tensor for name, tensor in renamed.items()}


def is_projection(name: str) -> bool:
    return ".attentions." in name and ".group_norm." not in name and name.endswith(".weight")


def to_linear(convolution: Tensor) -> Tensor:
    """Convert a 1x1 convolution's weights (o, i, 1, 1) or (o, i, 1) to a linear layer's (o, i)."""
    return convolution.flatten(1) if set(convolution.shape[2:]) <= {1} else convolution


def open_clip_from_ldm(tensors: Tensors, config: Config) -> dict[str, Tensor]:
    """Rename OpenCLIP's tensors (any shape), and split the fused attention input."""
    ours = inverted(open_clip_modules(config))
    found = {name: tensor for theirs, tensor in tensors.items() if (name := rename(theirs, ours)) is not None}
    for layer in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            fused = tensors.get(f"transformer.resblocks.{layer}.attn.in_proj_{kind}")
            if fused is not None:
                names = [f"text_model.encoder.layers.{layer}.{place}.{kind}" for place in IN_PROJ]
                found |= zip(names, fused.chunk(len(IN_PROJ)), strict=False)
    if LDM_POSITIONS in tensors:
        found[POSITIONS] = tensors[LDM_POSITIONS]
    if LDM_PROJECTION in tensors and "CLIPTextModelWithProjection" in config["architectures"]:
        found[PROJECTION] = tensors[LDM_PROJECTION].T
    return found


def to_ldm(tensors: Tensors, part: str, *, family: str, config: Config) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Yield the part's tensors (any shape) under their names in a single file, in the order of `tensors`.

    Raises:
        CorruptModel: the layout has no name for a tensor.
    """
    match part:
        case "unet":
            yield from renamed_tensors(tensors, unet_modules(config), UNET)
        case "vae":
            for name, (tensor,) in renamed_tensors(tensors, vae_modules(config), VAE):
                yield name, (tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor,)
        case _:
            text_part = TEXT_PARTS[family][part]
            pieces = open_clip_to_ldm(tensors, config) if text_part.open_clip else clip_to_ldm(tensors)
            yield from ((text_part.prefix + name, parts) for name, parts in pieces.items())


def renamed_tensors(tensors: Tensors, modules: Modules, prefix: str) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Yield each tensor (any shape) under its ldm name; raises CorruptModel if the layout has no name for it."""
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
    found[LDM_POSITIONS] = (tensors[POSITIONS],)
    if PROJECTION in tensors:
        found[LDM_PROJECTION] = (tensors[PROJECTION].T,)
    return found
