"""An IP-Adapter's file, and the image encoder that reads pictures for it.

    picture -> CLIP's image encoder -> projection -> a few tokens, as wide as those of the prompt

| projection | reads                                   | tokens        | told by               |
|------------|-----------------------------------------|---------------|-----------------------|
| base       | the encoder's one vector                | 4             | `image_proj.proj.`    |
| plus       | all patches of its last layer but one   | 16, resampled | `image_proj.latents`  |
| full       | the same                                | one a patch   | `image_proj.proj.3.`  |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from safelight.errors import CorruptModel, IncompatibleControl
from safelight.models.adapters.ip_file import Projection
from safelight.models.checkpoints.families import read_config
from safelight.models.hooks.picture_prompts import IpAdapter
from safelight.models.networks.components import Weights, load_weights
from safelight.models.networks.image_encoder import to_clip
from safelight.models.networks.load import build, fitting_name, outlined, require_shapes
from safelight.models.networks.networks import control_classes
from safelight.models.networks.placement import Placement
from safelight.models.weights.safetensors_file import TEXT_ENCODER
from safelight.models.weights.tensor_file import TensorFile

HEAD_WIDTH = 64
PLUS_NAMES = (
    (r"^layers\.(\d+)\.0\.norm1\.", r"layers.\1.ln0."),
    (r"^layers\.(\d+)\.0\.norm2\.", r"layers.\1.ln1."),
    (r"^layers\.(\d+)\.0\.to_out\.", r"layers.\1.attn.to_out.0."),
    (r"^layers\.(\d+)\.0\.to_q\.", r"layers.\1.attn.to_q."),
    (r"^layers\.(\d+)\.1\.0\.", r"layers.\1.ff.0."),
    (r"^layers\.(\d+)\.1\.1\.", r"layers.\1.ff.1.net.0.proj."),
    (r"^layers\.(\d+)\.1\.3\.", r"layers.\1.ff.1.net.2."),
)
FULL_NAMES = (
    (r"^proj\.0\.", "ff.net.0.proj."),
    (r"^proj\.2\.", "ff.net.2."),
    (r"^proj\.3\.", "norm."),
)
BASE_NAMES = ((r"^proj\.", "image_embeds."),)


@dataclass(frozen=True, slots=True, eq=False)
class PromptImageEncoder:
    network: Any
    placement: Placement
    size_bytes: int

    @torch.inference_mode()
    def read(self, image: Image.Image, *, patches: bool) -> tuple[Tensor, Tensor]:
        """The image's embedding (1, dim) or patches (1, t, dim); and zeros, or those of black, for the negative."""
        pixels = to_clip(image, int(self.network.config.image_size)).to(self.placement.device, self.placement.dtype)
        if not patches:
            vector = self.network(pixels).image_embeds
            return vector, torch.zeros_like(vector)
        states, nothing = (
            self.network(some, output_hidden_states=True).hidden_states[-2] for some in (pixels, pixels * 0)
        )
        return states, nothing


def load_encoder(folder: Path, placement: Placement) -> PromptImageEncoder:
    """
    Raises:
        UnsafeFile, CorruptModel: as `load_model`.
    """
    config = read_config(folder / "config.json")
    weights = load_weights(folder, TEXT_ENCODER)
    network = build(control_classes().image_encoder, config.get("vision_config") or config, weights, placement)
    return PromptImageEncoder(network, placement, sum(param.nbytes for param in network.parameters()))


def load_adapter(
    path: Path, kind: Projection, *, cross: Mapping[str, Any], name: str, placement: Placement
) -> IpAdapter:
    """`cross` are the model's cross-attentions by path, in order.

    Raises:
        IncompatibleControl: it has not the layers of this model.
        CorruptModel: tensors are missing or of odd shapes.
    """
    file = TensorFile(path)
    config, tensors = plan_of(file, kind)
    projection = build(control_classes().projections[kind], config, Weights(path, tensors, (file,)), placement)
    layers = {
        where: (copied(keys, placement), copied(values, placement))
        for where, (keys, values) in layers_of(file, cross, name=name).items()
    }
    size = sum(param.nbytes for param in projection.parameters())
    size += sum(part.nbytes for pair in layers.values() for part in pair)
    width = int(config["embed_dims"] if kind == "plus" else config["image_embed_dim"])
    return IpAdapter(projection, kind != "base", width, layers, size)


def require_whole(path: Path, kind: Projection, *, cross: Mapping[str, Any], name: str) -> None:
    """Raises as `load_adapter` does; no weights are read, and `cross` may be those of an outline."""
    file = TensorFile(path)
    config, tensors = plan_of(file, kind)
    wanted = outlined(control_classes().projections[kind], config, path).state_dict()
    require_shapes(wanted, {fitting_name(one, wanted): tensor.shape for one, tensor in tensors.items()}, path)
    layers_of(file, cross, name=name)


def plan_of(file: TensorFile, kind: Projection) -> "Plan":
    inner = {key.removeprefix("image_proj."): file[key] for key in file if key.startswith("image_proj.")}
    try:
        return PROJECTIONS[kind](inner)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CorruptModel(f"{file.path}: its image_proj lacks {error}") from None


def layers_of(file: TensorFile, cross: Mapping[str, Any], *, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The key and value weights, (inner, dim) each, for each of the model's cross-attentions."""
    numbers = sorted({int(found[1]) for key in file if (found := re.match(r"ip_adapter\.(\d+)\.to_k_ip\.weight", key))})
    if len(numbers) != len(cross):
        raise IncompatibleControl(
            name, f"it has {len(numbers)} cross-attention layers, the model has {len(cross)}", model="it"
        )
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for number, (where, attention) in zip(numbers, cross.items(), strict=True):
        keys, values = (f"ip_adapter.{number}.to_{part}_ip.weight" for part in "kv")
        if values not in file or any(file[key].shape != attention.to_k.weight.shape for key in (keys, values)):
            raise IncompatibleControl(
                name, f"its layer {number} has another shape than {where} of the model", model="it"
            )
        layers[where] = file[keys], file[values]
    return layers


def copied(tensor: Tensor, placement: Placement) -> Tensor:
    """A copy of a tensor of any shape: a memory-mapped file may be overwritten while it is used."""
    return tensor.contiguous().to(placement.device, placement.dtype, copy=True)


Plan = tuple[dict[str, Any], dict[str, Tensor]]
"""What diffusers would be told to build, and the tensors under its names."""


def base_projection(inner: Mapping[str, Tensor]) -> Plan:
    """Configuration and renamed weights, of any shape, of a linear layer."""
    tokens_wide, width = inner["proj.weight"].shape
    context = inner["norm.weight"].shape[0]
    config = {
        "image_embed_dim": width,
        "cross_attention_dim": context,
        "num_image_text_embeds": tokens_wide // context,
    }
    return config, renamed(inner, BASE_NAMES)


def full_projection(inner: Mapping[str, Tensor]) -> Plan:
    """Configuration and renamed weights, of any shape, of an MLP."""
    config = {
        "image_embed_dim": inner["proj.0.weight"].shape[1],
        "cross_attention_dim": inner["proj.3.weight"].shape[0],
    }
    return config, renamed(inner, FULL_NAMES)


def plus_projection(inner: Mapping[str, Tensor]) -> Plan:
    """Configuration and renamed weights, of any shape, of a resampler."""
    _, queries, width = inner["latents"].shape
    layers = {found[1] for name in inner if (found := re.match(r"layers\.(\d+)\.", name))}
    config = {
        "embed_dims": inner["proj_in.weight"].shape[1],
        "output_dims": inner["proj_out.weight"].shape[0],
        "hidden_dims": width,
        "depth": len(layers),
        "dim_head": HEAD_WIDTH,
        "heads": inner["layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH,
        "num_queries": queries,
        "ffn_ratio": inner["layers.0.1.1.weight"].shape[0] / width,
    }
    tensors = renamed(inner, PLUS_NAMES)
    for name in [name for name in tensors if ".0.to_kv." in name]:
        keys, values = tensors.pop(name).chunk(2)
        where = name.replace(".0.to_kv.", ".attn.to_{}.")
        tensors |= {where.format("k"): keys, where.format("v"): values}
    return config, tensors


PROJECTIONS = {"base": base_projection, "plus": plus_projection, "full": full_projection}


def renamed(tensors: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Tensors of any shape, with the names of our classes."""

    def ours(name: str) -> str:
        return next((re.sub(old, new, name) for old, new in table if re.match(old, name)), name)

    return {ours(name): tensor for name, tensor in tensors.items()}
