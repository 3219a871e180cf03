"""A checkpoint on disk becomes a `Model`: networks on a device, ready for the engine.

Networks are built without initialising their weights, then given the memory-mapped tensors of the files, so
loading costs what reading costs.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from safelight.errors import CorruptModel
from safelight.models.checkpoints.families import IMAGE_ENCODER, PREPROCESSOR, Description, read_config
from safelight.models.hooks.hook import Hook
from safelight.models.networks.components import Components, Weights, load_weights, open_parts
from safelight.models.networks.encode import TextEncoder
from safelight.models.networks.image_encoder import ImageEncoder
from safelight.models.networks.latents import VAE
from safelight.models.networks.networks import control_classes, denoiser_class, network_classes, transformer_classes
from safelight.models.networks.placement import Placement
from safelight.models.networks.t5 import T5
from safelight.models.weights.safetensors_file import TEXT_ENCODER

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Autoencoders saved before diffusers 0.13 (Stable Diffusion 1.5's is one) name their attention so."""
SHARED = {"encoder.embed_tokens.weight": "shared.weight"}
"""T5 goes by both names for its words, which are once in the file, and in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint in memory. Its networks never change, so any number of jobs may share it."""

    name: str
    digest: str
    description: Description
    placement: Placement
    unet: "UNet2DConditionModel | SD3Transformer2DModel | FluxTransformer2DModel"
    """What denoises."""
    vae: VAE
    text_encoders: tuple[TextEncoder, ...]
    """Its CLIPs."""
    t5: T5 | None = None
    vae_digest: str = ""
    text_digest: str = ""
    """Of the autoencoder and the text encoders that stand in for its own (`part_cache.py`)."""
    image_encoder: ImageEncoder | None = None
    """Of models that are told a picture in place of words."""
    vae_lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while the autoencoder runs: two threads use it, and it may change its format for a while."""
    cache: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary[Any, Any], repr=False, compare=False)
    """What others worked out for this model and will want again, by who did; here, so that it goes with the model."""
    hooks: dict[str, Hook] = field(default_factory=dict[str, Hook], repr=False, compare=False)
    """What changes its network while it is called, by effect."""

    @property
    def readers(self) -> dict[str, TextEncoder | T5]:
        """All that read the prompt, by the folders they would be in; T5 is the last."""
        family = self.description.family
        clips = dict(zip(family.text_encoders, self.text_encoders, strict=True))
        return clips | ({family.t5: self.t5} if self.t5 else {})


def load_model(description: Description, *, name: str, digest: str, placement: Placement) -> Model:
    """Load every network of a checkpoint.

    Raises:
        UnsafeFile: weights in a format that can carry code.
        CorruptModel: files missing, cut off, or not fitting the configuration.
        UnsupportedOption: a kind of network we cannot run.
    """
    parts, classes = open_parts(description), network_classes()
    family = description.family
    unet = build(denoiser_class(family.name), description.unet, parts.weights(family.network), placement)
    vae = build(classes.vae, description.vae, parts.weights("vae"), placement)
    encoders = [
        TextEncoder(
            parts.tokenizer(part),
            build(classes.text_encoder, description.configuration(part), parts.weights(part), placement),
        )
        for part in family.text_encoders
    ]
    return Model(
        name=name,
        digest=digest,
        description=description,
        placement=placement,
        unet=unet,
        vae=VAE(vae),
        text_encoders=tuple(encoders),
        t5=load_t5(description, parts, placement) if description.t5 else None,
        image_encoder=load_image_encoder(description, placement) if description.family.reads_picture else None,
    )


def load_t5(description: Description, parts: Components, placement: Placement) -> T5:
    part = description.t5
    weights = parts.weights(part)
    network = build(transformer_classes().t5, description.configuration(part), weights, placement)
    return T5(parts.t5_tokenizer(), network)


def load_image_encoder(description: Description, placement: Placement) -> ImageEncoder:
    folder = description.path / IMAGE_ENCODER
    config, preprocessor = description.configuration(IMAGE_ENCODER), description.path / PREPROCESSOR
    network = build(control_classes().image_encoder, config, load_weights(folder, TEXT_ENCODER), placement)
    return ImageEncoder.over(network, read_config(preprocessor) if preprocessor.is_file() else {})


def build(
    make: Callable[[Mapping[str, Any]], nn.Module], config: Mapping[str, Any], weights: Weights, placement: Placement
) -> Any:
    """Make a network on the meta device and give it its tensors, in the placement's format."""
    where = weights.where
    network = outlined(make, config, where)
    wanted = network.state_dict()
    found = {fitting_name(name, wanted): tensor for name, tensor in weights.tensors.items()}
    twins = {twin: name for twin, name in SHARED.items() if twin in wanted.keys() - found.keys() and name in found}
    found |= {twin: found[name] for twin, name in twins.items()}
    require_shapes(wanted, {name: tensor.shape for name, tensor in found.items()}, where)
    # What T5 computes there is too large for float16.
    wide: Any = getattr(network, "_keep_in_fp32_modules", None) or ()
    placed: dict[str, Tensor] = {}
    for name in wanted.keys() - twins.keys():
        keep = placement.dtype == torch.float16 and not {*wide}.isdisjoint(name.split("."))
        placed[name] = place(found[name], replace(placement, dtype=torch.float32) if keep else placement)
        if placed[name].data_ptr() != found[name].data_ptr():
            weights.let_go(found[name])
    placed |= {twin: placed[name] for twin, name in twins.items()}
    network.load_state_dict(placed, assign=True)
    for name, buffer in network.named_buffers():
        if buffer.is_meta:
            fill_buffer(network, name, buffer, placement.device)
    return network.requires_grad_(False).eval()


def outlined(make: Callable[[Mapping[str, Any]], nn.Module], config: Mapping[str, Any], where: Path) -> nn.Module:
    """The network on the meta device.

    Raises:
        CorruptModel: the configuration describes none.
    """
    try:
        return make(config)
    except Exception as error:  # diffusers and transformers trip over a garbled configuration in any way there is
        raise CorruptModel(f"{where}: config.json describes no network: {type(error).__name__}: {error}") from error


def require_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Sequence[int]], where: Path) -> None:
    """Raises CorruptModel where a tensor of a network is not among those in a file, or of another shape."""
    if missing := sorted(wanted.keys() - found.keys()):
        raise CorruptModel(f"{where} lacks {len(missing)} tensors of its network, the first is {missing[0]}")
    for name, tensor in wanted.items():
        if (given := tuple(found[name])) != (needed := tuple(tensor.shape)):
            raise CorruptModel(f"{where}: {name} is {given} in the file and {needed} in the configuration")


def place(tensor: Tensor, placement: Placement) -> Tensor:
    """On the device, in its format; a convolution's weights on a CPU also in the layout its kernels read."""
    if tensor.ndim == 4 and placement.device.type == "cpu":
        # 1.1 times as fast for the embedded UNet, 1.4 for its decoder: the other layout is rearranged at every call.
        # Format and layout in one go: one after the other takes three times as long.
        return tensor.to(placement.dtype, memory_format=torch.channels_last)
    return tensor.to(placement.device, placement.dtype)


def fitting_name(name: str, wanted: dict[str, Any]) -> str:
    """A tensor's name in the network, where an older library saved it under another."""
    # transformers 5 dropped CLIP's prefix for the bare encoder, and not for the one with a projection.
    bare = name.removeprefix("text_model.")
    renewed = re.sub(r"\.(query|key|value|proj_attn)\.(weight|bias)$", lambda m: f".{OLD_ATTENTION[m[1]]}.{m[2]}", name)
    return next((candidate for candidate in (name, bare, renewed) if candidate in wanted), name)


def fill_buffer(network: nn.Module, name: str, buffer: Tensor, device: torch.device) -> None:
    """Buffers that files leave out; CLIP's position numbers are the only ones."""
    owner, _, leaf = name.rpartition(".")
    assert leaf == "position_ids", f"{name} has no value in the file and none that is known"
    positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
    network.get_submodule(owner).register_buffer(leaf, positions, persistent=False)
