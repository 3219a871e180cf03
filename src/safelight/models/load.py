"""A diffusers folder becomes a `Model`: networks on a device, ready for the engine.

Networks are built without initialising their weights, then given the memory-mapped tensors of the files, so
loading costs what reading costs.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safelight.errors import CorruptModel
from safelight.models.encode import TextEncoder
from safelight.models.families import Description, describe, read_config
from safelight.models.latents import VAE
from safelight.models.networks import network_classes
from safelight.models.placement import Placement
from safelight.models.safetensors_file import load_weights
from safelight.models.tokenize import Tokenizer

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

COMPONENT_FILES = ("*.json", "*.safetensors", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint in memory. Its networks never change, so any number of jobs may share it."""

    name: str
    digest: str
    description: Description
    placement: Placement
    unet: "UNet2DConditionModel"
    vae: VAE
    text_encoders: tuple[TextEncoder, ...]


def load_model(folder: Path, *, name: str, digest: str, placement: Placement) -> Model:
    """Load every network of a diffusers folder.

    Raises:
        UnsafeFile: weights in a format that can carry code.
        CorruptModel: files missing, cut off, or not fitting the configuration.
        UnsupportedOption: a kind of pipeline or network we cannot run.
    """
    description = describe(folder)
    classes = network_classes()
    unet = build(classes.unet(description.unet), folder / "unet", placement)
    vae = build(classes.vae(description.vae), folder / "vae", placement)
    encoders = [
        TextEncoder(
            Tokenizer.load(folder / part.replace("text_encoder", "tokenizer")),
            build(classes.text_encoder(read_config(folder / part / "config.json")), folder / part, placement, stem="model"),
        )
        for part in description.family.text_encoders
    ]
    return Model(
        name=name,
        digest=digest,
        description=description,
        placement=placement,
        unet=unet,
        vae=VAE(vae),
        text_encoders=tuple(encoders),
    )


def build(network: nn.Module, folder: Path, placement: Placement, *, stem: str = "diffusion_pytorch_model") -> Any:
    """Give a network built on the meta device its tensors, in the placement's format."""
    weights = {fitting_name(name, network): tensor for name, tensor in load_weights(folder, stem).items()}
    wanted = network.state_dict()
    if missing := sorted(wanted.keys() - weights.keys()):
        raise CorruptModel(f"{folder} lacks {len(missing)} tensors of its network, the first is {missing[0]}")
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            found, needed = tuple(weights[name].shape), tuple(tensor.shape)
            raise CorruptModel(f"{folder}: {name} is {found} in the file and {needed} in the configuration")
    placed = {name: weights[name].to(placement.device, placement.dtype) for name in wanted}
    network.load_state_dict(placed, assign=True)
    for name, buffer in network.named_buffers():
        if buffer.is_meta:
            fill_buffer(network, name, buffer, placement.device)
    return network.requires_grad_(False).eval()


def fitting_name(name: str, network: nn.Module) -> str:
    """Checkpoints name CLIP's tensors `text_model.*`; transformers 5 dropped the prefix for the bare encoder."""
    bare = name.removeprefix("text_model.")
    return name if hasattr(network, "text_model") else bare


def fill_buffer(network: nn.Module, name: str, buffer: Tensor, device: torch.device) -> None:
    """Buffers that files leave out; CLIP's position numbers are the only ones."""
    owner, _, leaf = name.rpartition(".")
    assert leaf == "position_ids", f"{name} has no value in the file and none that is known"
    positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
    network.get_submodule(owner).register_buffer(leaf, positions, persistent=False)


def digest_model(folder: Path, *, cache: Path | None = None) -> str:
    """sha256 over the sha256 of every file the loader may read, by relative path.

    Hashing gigabytes takes seconds, so a file's sum is kept in `cache` under its path, size and time.
    """
    known = read_sums(cache)
    sums: dict[str, str] = {}
    total = hashlib.sha256()
    for path in sorted(path for pattern in COMPONENT_FILES for path in folder.rglob(pattern)):
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        sums[key] = known.get(key) or file_sum(path)
        total.update(f"{path.relative_to(folder).as_posix()} {sums[key]}\n".encode())
    if cache is not None and not sums.keys() <= known.keys():
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(".part")
        part.write_text(json.dumps(known | sums))
        part.replace(cache)
    return total.hexdigest()


def file_sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(cache: Path | None) -> dict[str, str]:
    try:
        return json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):
        return {}
