"""An IP-Adapter's file, and the image encoder that reads pictures for it.

    picture -> CLIP's image encoder -> projection -> a few tokens, as wide as those of the prompt

| projection | reads                                   | tokens        | told by                           |
|------------|-----------------------------------------|---------------|-----------------------------------|
| base       | the encoder's one vector                | 4             | `image_proj.proj.`                |
| plus       | all patches of its last layer but one   | 16, resampled | `image_proj.latents`              |
| full       | the same                                | one a patch   | `image_proj.proj.3.`              |
| face       | embeddings of faces                     | 4 or 16 each  | `image_proj.norm.`, 512 wide      |
| face-plus  | one of them, and the patches            | 4             | `image_proj.perceiver_resampler.` |

The files of the last two, FaceID, also hold a LoRA for every attention layer (`ip_adapter.0.to_q_lora.down.weight`).
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
from safelight.models.hooks.adapters import Adapter
from safelight.models.hooks.lora_terms import LowRank
from safelight.models.hooks.picture_prompts import IpAdapter, attentions, cross_attentions
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
FACE_NAMES = (
    (r"^proj\.0\.", "ff.net.0.proj."),
    (r"^proj\.2\.", "ff.net.2."),
)
FACE_PLUS_NAMES = (
    (r"^proj\.0\.", "proj.net.0.proj."),
    (r"^proj\.2\.", "proj.net.2."),
)
RESAMPLER = "perceiver_resampler."
LORA_PARTS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
"""As FaceID's files name them, and as the network does."""


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


def load_adapter(path: Path, kind: Projection, *, network: Any, name: str, placement: Placement) -> IpAdapter:
    """`network` is the model's UNet.

    Raises:
        IncompatibleControl: it has not the layers of this model.
        CorruptModel: tensors are missing or of odd shapes.
    """
    file = TensorFile(path)
    config, tensors = plan_of(file, kind)
    projection = build(control_classes().projections[kind], config, Weights(path, tensors, (file,)), placement)
    layers = {
        where: (copied(keys, placement), copied(values, placement))
        for where, (keys, values) in layers_of(file, cross_attentions(network), name=name).items()
    }
    terms = {
        where: (LowRank(copied(down, placement), copied(up, placement)),)
        for where, (down, up) in lora_of(file, attentions(network), name=name).items()
    }
    lora = Adapter(terms) if terms else None
    size = sum(param.nbytes for param in projection.parameters()) + (lora.size_bytes if lora else 0)
    size += sum(part.nbytes for pair in layers.values() for part in pair)
    return IpAdapter(
        projection=projection,
        reads_patches=kind not in ("base", "face"),
        encoder_width=encoder_width(config, kind),
        layers=layers,
        lora=lora,
        size_bytes=size,
    )


def require_whole(path: Path, kind: Projection, *, network: Any, name: str) -> None:
    """Raises as `load_adapter` does; no weights are read, and `network` may be an outline."""
    file = TensorFile(path)
    config, tensors = plan_of(file, kind)
    wanted = outlined(control_classes().projections[kind], config, path).state_dict()
    require_shapes(wanted, {fitting_name(one, wanted): tensor.shape for one, tensor in tensors.items()}, path)
    layers_of(file, cross_attentions(network), name=name)
    lora_of(file, attentions(network), name=name)


def encoder_width(config: Mapping[str, Any], kind: Projection) -> int:
    """How many numbers an image encoder says of a picture or a patch; 0 where the adapter reads faces alone."""
    match kind:
        case "plus":
            return int(config["embed_dims"])
        case "face":
            return 0
        case "face-plus":
            return int(config["hidden_dims"])
        case _:
            return int(config["image_embed_dim"])


@torch.inference_mode()
def tokens_of(adapter: IpAdapter, states: Tensor | None, faces: Tensor | None, *, shortcut: bool) -> Tensor:
    """The tokens, (t, dim), of an image encoder's states, (1, width) or (1, patches, width), and of n faces, (n, 512).

    `shortcut` is of FaceID Plus, whose second version adds what it reads of the picture to the face.
    """
    projection: Any = adapter.projection
    if faces is None:
        return projection(states)[0]
    if states is not None:
        projection.clip_embeds, projection.shortcut = states[None], shortcut
    tokens = projection(faces).flatten(0, 1)
    projection.clip_embeds = None
    return tokens


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


def lora_of(file: TensorFile, layers: Mapping[str, Any], *, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """FaceID's LoRA: down (r, in) and up (out, r) for the layers of the model's attentions; none in other files."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for number, (path, attention) in enumerate(layers.items()):
        for theirs, ours in LORA_PARTS.items():
            down, up = (f"ip_adapter.{number}.to_{theirs}_lora.{side}.weight" for side in ("down", "up"))
            if down not in file and up not in file:
                continue
            weight, where = attention.get_submodule(ours).weight, f"{path}.{ours}"
            if down not in file or up not in file:
                raise CorruptModel(f"{file.path}: half of the LoRA of its layer {number} is missing")
            rank = file[down].shape[:1]
            if (file[down].shape, file[up].shape) != ((*rank, weight.shape[1]), (weight.shape[0], *rank)):
                raise IncompatibleControl(name, f"its layer {number} is not as {where} of the model", model="it")
            found[where] = file[down], file[up]
    return found


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
    config, tensors = resampler(inner)
    return {
        **config,
        "embed_dims": inner["proj_in.weight"].shape[1],
        "output_dims": inner["proj_out.weight"].shape[0],
        "hidden_dims": width,
        "num_queries": queries,
    }, tensors


def resampler(inner: Mapping[str, Tensor]) -> Plan:
    """Configuration and renamed weights, of any shape, of the layers that `plus` and FaceID Plus have in common."""
    layers = {found[1] for name in inner if (found := re.match(r"layers\.(\d+)\.", name))}
    first = inner["layers.0.1.1.weight"]
    config = {
        "depth": len(layers),
        "dim_head": HEAD_WIDTH,
        "heads": inner["layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH,
        "ffn_ratio": first.shape[0] / first.shape[1],
    }
    tensors = renamed(inner, PLUS_NAMES)
    for name in [name for name in tensors if ".0.to_kv." in name]:
        keys, values = tensors.pop(name).chunk(2)
        where = name.replace(".0.to_kv.", ".attn.to_{}.")
        tensors |= {where.format("k"): keys, where.format("v"): values}
    return config, tensors


def face_projection(inner: Mapping[str, Tensor]) -> Plan:
    """Configuration and renamed weights, of any shape, of an MLP that makes several tokens of a face."""
    hidden, width = inner["proj.0.weight"].shape
    context = inner["norm.weight"].shape[0]
    config = {
        "image_embed_dim": width,
        "cross_attention_dim": context,
        "mult": hidden // width,
        "num_tokens": inner["proj.2.weight"].shape[0] // context,
    }
    return config, renamed(inner, FACE_NAMES)


def face_plus_projection(inner: Mapping[str, Tensor]) -> Plan:
    """Configuration and renamed weights, of any shape, of a resampler whose queries are made of a face."""
    config, tensors = resampler(
        {name.removeprefix(RESAMPLER): tensor for name, tensor in inner.items() if name.startswith(RESAMPLER)}
    )
    tensors |= renamed({name: part for name, part in inner.items() if not name.startswith(RESAMPLER)}, FACE_PLUS_NAMES)
    hidden, width = inner["proj.0.weight"].shape
    context = inner["norm.weight"].shape[0]
    if len(tensors["proj_out.weight"]) != context:
        raise ValueError("queries as wide as its tokens")
    return {
        **config,
        "embed_dims": context,
        "output_dims": context,
        "hidden_dims": tensors["proj_in.weight"].shape[1],
        "id_embeddings_dim": width,
        "num_tokens": inner["proj.2.weight"].shape[0] // context,
        "ffproj_ratio": hidden // width,
    }, tensors


PROJECTIONS = {
    "base": base_projection,
    "plus": plus_projection,
    "full": full_projection,
    "face": face_projection,
    "face-plus": face_plus_projection,
}


def renamed(tensors: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Tensors of any shape, with the names of our classes."""

    def ours(name: str) -> str:
        return next((re.sub(old, new, name) for old, new in table if re.match(old, name)), name)

    return {ours(name): tensor for name, tensor in tensors.items()}
