"""Load a checkpoint from disk as a `Model`: networks on a device, ready for the engine.

Networks are built without initialising their weights and are then given the memory-mapped tensors of the files, so
loading costs no more than reading.
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
from safelight.models.networks.components import Components, Weights, load_weights, open_components
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
"""Names of attention layers in autoencoders saved before diffusers 0.13 (Stable Diffusion 1.5's is one)."""
SHARED = {"encoder.embed_tokens.weight": "shared.weight"}
"""T5 has two names for its token embeddings, which exist once in the file and once in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint in memory. Its networks never change, so any number of jobs can share it."""

    name: str
    digest: str
    description: Description
    placement: Placement
    unet: "UNet2DConditionModel | SD3Transformer2DModel | FluxTransformer2DModel"
    """The denoising network."""
    vae: VAE
    text_encoders: tuple[TextEncoder, ...]
    """The CLIP text encoders."""
    t5: T5 | None = None
    vae_digest: str = ""
    text_digest: str = ""
    """Digests of an autoencoder and of text encoders that replace its own (`part_cache.py`); empty for its own."""
    image_encoder: ImageEncoder | None = None
    """Only of models conditioned on an image in place of a prompt."""
    vae_lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while the autoencoder runs: two threads use it, and it may change its format for a while."""
    cache: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary[Any, Any], repr=False, compare=False)
    """What others worked out for this model and will want again, by who did; here, so that it goes with the model."""
    hooks: dict[str, Hook] = field(default_factory=dict[str, Hook], repr=False, compare=False)
    """What changes its network while it is called, by effect."""

    @property
    def prompt_encoders(self) -> dict[str, TextEncoder | T5]:
        """All text encoders by their folder names in a diffusers checkpoint; T5 is the last."""
        family = self.description.family
        clips = dict(zip(family.text_encoders, self.text_encoders, strict=True))
        return clips | ({family.t5: self.t5} if self.t5 else {})


def load_model(description: Description, *, name: str, digest: str, placement: Placement) -> Model:
    """Load every network of a checkpoint.

    Raises:
        UnsafeFile: weights in a format that can carry code.
        CorruptModel: files are missing, truncated, or do not match the configuration.
        UnsupportedOption: a kind of network that is not supported.
    """
    parts, classes = open_components(description), network_classes()
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
        image_encoder=load_image_encoder(description, placement) if description.family.image_conditioned else None,
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
    return ImageEncoder.from_config(network, read_config(preprocessor) if preprocessor.is_file() else {})


def build(
    make: Callable[[Mapping[str, Any]], nn.Module], config: Mapping[str, Any], weights: Weights, placement: Placement
) -> Any:
    """Build a network on the meta device and assign its tensors, in the placement's dtype."""
    where = weights.where
    network = outlined(make, config, where)
    wanted = network.state_dict()
    found = {fitting_name(name, wanted): tensor for name, tensor in weights.tensors.items()}
    twins = {twin: name for twin, name in SHARED.items() if twin in wanted.keys() - found.keys() and name in found}
    found |= {twin: found[name] for twin, name in twins.items()}
    require_shapes(wanted, {name: tensor.shape for name, tensor in found.items()}, where)
    # T5's activations in these modules overflow float16.
    float32_modules: Any = getattr(network, "_keep_in_fp32_modules", None) or ()
    placed: dict[str, Tensor] = {}
    for name in wanted.keys() - twins.keys():
        in_float32 = placement.dtype == torch.float16 and not {*float32_modules}.isdisjoint(name.split("."))
        placed[name] = place(found[name], replace(placement, dtype=torch.float32) if in_float32 else placement)
        if placed[name].data_ptr() != found[name].data_ptr():
            weights.release(found[name])
    placed |= {twin: placed[name] for twin, name in twins.items()}
    network.load_state_dict(placed, assign=True)
    for name, buffer in network.named_buffers():
        if buffer.is_meta:
            fill_buffer(network, name, buffer, placement.device)
    return network.requires_grad_(False).eval()


def outlined(make: Callable[[Mapping[str, Any]], nn.Module], config: Mapping[str, Any], where: Path) -> nn.Module:
    """Build the network on the meta device.

    Raises:
        CorruptModel: the configuration describes no network.
    """
    try:
        return make(config)
    except Exception as error:  # diffusers and transformers raise anything for an invalid configuration
        raise CorruptModel(f"{where}: config.json describes no network: {type(error).__name__}: {error}") from error


def require_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Sequence[int]], where: Path) -> None:
    """Raise CorruptModel if a tensor of the network (any shape) is missing from a file or has another shape there."""
    if missing := sorted(wanted.keys() - found.keys()):
        raise CorruptModel(f"{where} lacks {len(missing)} tensors of its network, the first is {missing[0]}")
    for name, tensor in wanted.items():
        if (given := tuple(found[name])) != (needed := tuple(tensor.shape)):
            raise CorruptModel(f"{where}: {name} is {given} in the file and {needed} in the configuration")


def place(tensor: Tensor, placement: Placement) -> Tensor:
    """Move a tensor of any shape to the device and dtype; on a CPU, convolution weights also to channels_last."""
    if tensor.ndim == 4 and placement.device.type == "cpu":
        # 1.1 times as fast for the embedded UNet, 1.4 for its decoder: the other layout is reordered at every call.
        # Convert dtype and layout in one call: two calls take three times as long.
        return tensor.to(placement.dtype, memory_format=torch.channels_last)
    return tensor.to(placement.device, placement.dtype)


def fitting_name(name: str, wanted: dict[str, Any]) -> str:
    """Return a tensor's name in the network, given the name under which an older library may have saved it."""
    # transformers 5 dropped CLIP's prefix for the encoder without a projection only.
    bare = name.removeprefix("text_model.")
    renewed = re.sub(r"\.(query|key|value|proj_attn)\.(weight|bias)$", lambda m: f".{OLD_ATTENTION[m[1]]}.{m[2]}", name)
    return next((candidate for candidate in (name, bare, renewed) if candidate in wanted), name)


def fill_buffer(network: nn.Module, name: str, buffer: Tensor, device: torch.device) -> None:
    """Fill a buffer that files leave out; CLIP's position ids, (1, n), are the only ones."""
    owner, _, leaf = name.rpartition(".")
    assert leaf == "position_ids", f"{name} has no value in the file and no known default"
    positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
    network.get_submodule(owner).register_buffer(leaf, positions, persistent=False)
