"""Autoencoders and text encoders that replace a model's own, per request.

`with_parts` returns a model with the same denoising network and the same digest, so requests that differ only in these
parts share their network calls.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from safelight.errors import UnsupportedOption
from safelight.models.checkpoints.families import Description, read_config, text_widths
from safelight.models.checkpoints.part_folder import PartFolder, PartSource
from safelight.models.networks.components import Outline, Weights, load_weights, open_components
from safelight.models.networks.encode import TextEncoder
from safelight.models.networks.latents import VAE
from safelight.models.networks.load import Model, build, fitting_name, outlined, require_shapes
from safelight.models.networks.memory import Allocation
from safelight.models.networks.networks import network_classes, transformer_classes
from safelight.models.networks.placement import Placement
from safelight.models.networks.size_estimate import weights_bytes
from safelight.models.networks.t5 import T5
from safelight.models.networks.t5_vocabulary import t5_tokenizer
from safelight.models.weights.configurations import (
    MissingTensors,
    Shapes,
    TextPart,
    clip_configuration,
    t5_configuration,
    vae_configuration,
)
from safelight.models.weights.ldm_names import vae_modules
from safelight.models.weights.ldm_weights import vae_from_ldm, with_prefix_removed
from safelight.models.weights.safetensors_file import NETWORK, TEXT_ENCODER
from safelight.models.weights.scaled import ScaledWeights
from safelight.models.weights.single_file import T5_WORDS, VAES, text_prefixes
from safelight.models.weights.tensor_file import TensorFile
from safelight.spec import Denoised
from safelight.spec.parts import PartName, PinnedPart

FROM_MODEL = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "norm_num_groups")
"""Autoencoder settings that a file of weights does not contain; they are copied from the model's own."""
T5_TENSOR = "encoder.block.0.layer.0.SelfAttention.q.weight"
"""A tensor that every T5 has."""
Config = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Encoders:
    """Only the text encoders that replace a model's own: they may stay in memory longer than the model."""

    clips: Mapping[str, TextEncoder] = field(default_factory=dict[str, TextEncoder])
    """By the folder name of the text encoder they replace."""
    t5: T5 | None = None


@dataclass(slots=True)
class PartCache:
    folder: PartFolder
    loaded: dict[tuple[str, ...], Any] = field(default_factory=dict[tuple[str, ...], Any])
    compatible: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])
    """Part name, part digest and model digest of combinations that were checked."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def with_parts(self, model: Model, spec: Denoised) -> Model:
        """Return the model with the autoencoder and text encoders that the spec names.

        Raises:
            UnknownPart, InvalidRequest: the part is missing, or its name now refers to another file.
            UnsafeFile, CorruptModel: the part cannot be read.
            UnsupportedOption: the part is made for another family of models.
        """
        if spec.vae is not None:
            source = self.folder.pinned("vae", spec.vae)
            vae, lock = self.cached("vae", source, model, lambda: (load_vae(source, model), threading.Lock()))
            model = replace(model, vae=vae, vae_lock=lock, vae_digest=source.digest)
        if spec.text_encoder is not None:
            source = self.folder.pinned("text_encoder", spec.text_encoder)
            found = self.cached("text_encoder", source, model, lambda: load_encoders(source, model))
            own = zip(model.description.family.text_encoders, model.text_encoders, strict=True)
            clips = tuple(found.clips.get(part, encoder) for part, encoder in own)
            model = replace(model, text_encoders=clips, t5=found.t5 or model.t5, text_digest=source.digest)
        return model

    def require_fit(self, part: PartName, pin: PinnedPart, outline: Outline, model_digest: str) -> None:
        """Raise what loading the part for this model would raise, from headers alone; checked once for each pair."""
        if (part, pin.digest, model_digest) in self.compatible:
            return
        source = self.folder.pinned(part, pin)
        if part == "vae":
            config, weights = compatible_vae(source, outline.description, name=outline.name)
            wanted = outlined(network_classes().vae, config, weights.where).state_dict()
            found = {fitting_name(name, wanted): tensor.shape for name, tensor in weights.tensors.items()}
            require_shapes(wanted, found, weights.where)
        elif source.checkpoint is None:
            require_lone_encoder_fits(source, outline.description, name=outline.name)
        else:
            require_all_same_shape(source.checkpoint, outline.description, name=outline.name)
        self.compatible.add((part, pin.digest, model_digest))

    def allocations(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        """Return the memory that the spec's parts need for their weights."""
        wanted: dict[PartName, PinnedPart | None] = {"vae": spec.vae, "text_encoder": spec.text_encoder}
        return [
            self.allocation(part, pin, spec.model_digest, placement) for part, pin in wanted.items() if pin is not None
        ]

    def allocation(self, part: PartName, pin: PinnedPart, model_digest: str, placement: Placement) -> Allocation:
        source = self.folder.pinned(part, pin)
        key = (part, source.digest, model_digest)
        size = weights_bytes(self.folder.files(part, source), placement, name_prefixes(part, source))
        return Allocation(key=key, kind=part, name=pin.name, size_bytes=size, drop=lambda: self.loaded.pop(key, None))

    def cached(self, part: PartName, source: PartSource, model: Model, load: Callable[[], T]) -> T:
        with self.lock:
            key = (part, source.digest, model.digest)
            if key not in self.loaded:
                self.loaded[key] = load()
            found: T = self.loaded[key]
            return found


def name_prefixes(part: PartName, source: PartSource) -> Sequence[str]:
    """Return the prefixes of the part's tensor names in the source's files."""
    description = source.checkpoint
    if description is None or not description.is_file:
        return ("",)
    return VAES if part == "vae" else text_prefixes(description.family.name, t5=bool(description.t5))


def load_vae(source: PartSource, model: Model) -> VAE:
    config, weights = compatible_vae(source, model.description, name=model.name)
    return VAE(build(network_classes().vae, config, weights, model.placement))


def compatible_vae(source: PartSource, description: Description, *, name: str) -> tuple[Config, Weights]:
    """
    Raises:
        UnsupportedOption: the source is no autoencoder, or its latents differ from the model's.
    """
    config, weights = vae_parts(source, description)
    own = description.vae
    for what, ours, theirs in (
        ("channels", own["latent_channels"], config.get("latent_channels", 4)),
        ("scale", len(own["block_out_channels"]), len(config["block_out_channels"])),
        ("scaling factor", own.get("scaling_factor", 0.18215), config.get("scaling_factor", 0.18215)),
        ("shift", own.get("shift_factor") or 0, config.get("shift_factor") or 0),
    ):
        if ours != theirs:
            raise UnsupportedOption(
                "vae",
                f"{source.path} is for another family: latent {what} {theirs}, but {name} has {ours}",
            )
    return config, weights


def vae_parts(source: PartSource, description: Description) -> tuple[Config, Weights]:
    if source.checkpoint is not None:
        return source.checkpoint.vae, open_components(source.checkpoint).weights("vae")
    if source.path.is_dir():
        return read_config(source.path / "config.json"), load_weights(source.path, NETWORK)
    file = TensorFile(source.path)
    own = description.vae
    if any(name.startswith("encoder.down_blocks.") for name in file):
        return own, Weights(source.path, {name: file[name] for name in file}, (file,))
    try:
        config = vae_configuration(Shapes(file.header, "")) | {name: own[name] for name in FROM_MODEL if name in own}
    except MissingTensors:
        raise UnsupportedOption("vae", f"{source.path} holds no autoencoder") from None
    tensors = vae_from_ldm(with_prefix_removed(file, ""), vae_modules(config))
    return config, Weights(source.path, tensors, (file,))


def load_encoders(source: PartSource, model: Model) -> Encoders:
    """Load all text encoders of the source."""
    description = source.checkpoint
    if description is None:
        return load_lone_encoder(source, model)
    parts, clips = open_components(description), dict[str, TextEncoder]()
    require_no_extra_encoder(description, model.description, name=model.name)
    for part in description.family.text_encoders:
        config = compatible_config(description.configuration(part), model, part, where=str(description.path))
        network = build(network_classes().text_encoder, config, parts.weights(part), model.placement)
        clips[part] = TextEncoder(parts.tokenizer(part), network)
    if not description.t5:
        return Encoders(clips)
    config = description.configuration(description.t5)
    require_t5_fits(config, model.description, name=model.name, where=str(description.path))
    network = build(transformer_classes().t5, config, parts.weights(description.t5), model.placement)
    return Encoders(clips, T5(parts.t5_tokenizer(), network))


def load_lone_encoder(source: PartSource, model: Model) -> Encoders:
    """Load a single encoder. A CLIP replaces the CLIP of the same width; both use the tokenizer of the one replaced."""
    config, weights, is_t5 = lone_parts(source)
    if is_t5:
        return Encoders(t5=load_lone_t5(source, config, weights, model))
    family = model.description.family
    width, widths = config.get("hidden_size", 512), [encoder.width for encoder in model.text_encoders]
    if width not in widths:
        description = model.description
        raise UnsupportedOption(
            "text_encoder", width_message(str(source.path), width, description, widths, name=model.name)
        )
    number = widths.index(width)
    part = family.text_encoders[number]
    config = compatible_config(config, model, part, where=str(source.path))
    network = build(network_classes().text_encoder, config, weights, model.placement)
    return Encoders({part: TextEncoder(model.text_encoders[number].tokenizer, network)})


def lone_parts(source: PartSource) -> tuple[Config, Weights, bool]:
    """Return the configuration, the weights, and whether it is a T5.

    Raises:
        UnsupportedOption: the source is neither a CLIP nor a T5.
    """
    if source.path.is_dir():
        config, weights = read_config(source.path / "config.json"), load_weights(source.path, TEXT_ENCODER)
        return config, weights, config.get("model_type") == "t5"
    file = TensorFile(source.path)
    is_t5, shapes = T5_TENSOR in file, Shapes(file.header, "")
    try:
        config = t5_configuration(shapes) if is_t5 else clip_configuration(shapes, TextPart("", open_clip=False))
    except MissingTensors:
        raise UnsupportedOption("text_encoder", f"{source.path} holds no CLIP text encoder, and no T5") from None
    return config, Weights(source.path, ScaledWeights(file), (file,)), is_t5


def require_lone_encoder_fits(source: PartSource, description: Description, *, name: str) -> None:
    """Raise UnsupportedOption if a single text encoder does not fit this model."""
    config, _, is_t5 = lone_parts(source)
    if is_t5:
        require_t5_fits(config, description, name=name, where=str(source.path))
    elif (width := config.get("hidden_size", 512)) not in (widths := [*text_widths(description)]):
        raise UnsupportedOption("text_encoder", width_message(str(source.path), width, description, widths, name=name))


def load_lone_t5(source: PartSource, config: Config, weights: Weights, model: Model) -> T5:
    require_t5_fits(config, model.description, name=model.name, where=str(source.path))
    own: Any = model.t5 and model.t5.network.config
    words, wanted = config.get("vocab_size"), own.vocab_size if own else T5_WORDS
    if words != wanted:
        raise UnsupportedOption(
            "text_encoder",
            f"{source.path} has embeddings for {words} tokens, but its tokenizer has {wanted}: "
            "use the tokenizer that came with this text encoder",
        )
    network = build(transformer_classes().t5, config, weights, model.placement)
    return T5(model.t5.tokenizer if model.t5 else t5_tokenizer(), network)


def require_t5_fits(config: Config, description: Description, *, name: str, where: str) -> None:
    if not description.family.t5:
        raise UnsupportedOption("text_encoder", f"{where} has a T5, and {name} ({description.family.name}) uses none")
    width, wanted = config.get("d_model"), description.unet["joint_attention_dim"]
    if width != wanted:
        message = f"{where} has a T5 of width {width}; {name} needs width {wanted}"
        raise UnsupportedOption("text_encoder", message)


def compatible_config(config: Config, model: Model, part: str, *, where: str) -> Config:
    """Check that the configuration fits the network and return it, with a projection if the model's own has one."""
    number = model.description.family.text_encoders.index(part)
    own: Any = model.text_encoders[number].network.config
    require_same_shape(config, own.to_dict(), model.description, name=model.name, where=where)
    return {**config, "architectures": own.architectures}


def require_same_shape(config: Config, own: Config, description: Description, *, name: str, where: str) -> None:
    """Raise UnsupportedOption if a text encoder's width or vocabulary differs from the model's own."""
    (width, words), (wanted, known) = (
        (one.get("hidden_size", 512), one.get("vocab_size", 49408)) for one in (config, own)
    )
    if width != wanted:
        raise UnsupportedOption("text_encoder", width_message(where, width, description, [wanted], name=name))
    if words != known:
        raise UnsupportedOption("text_encoder", f"{where} has a vocabulary of {words}, and {name}'s own {known}")


def require_all_same_shape(other: Description, description: Description, *, name: str) -> None:
    """Raise UnsupportedOption if any text encoder of a checkpoint does not fit."""
    where = str(other.path)
    require_no_extra_encoder(other, description, name=name)
    for part in other.family.text_encoders:
        require_same_shape(
            other.configuration(part), description.configuration(part), description, name=name, where=where
        )
    if other.t5:
        require_t5_fits(other.configuration(other.t5), description, name=name, where=where)


def require_no_extra_encoder(other: Description, description: Description, *, name: str) -> None:
    if beyond := [part for part in other.family.text_encoders if part not in description.family.text_encoders]:
        raise UnsupportedOption(
            "text_encoder", f"{other.path} is {other.family.name} and has a {beyond[0]}; {name} has none"
        )


def width_message(where: str, width: int, description: Description, widths: list[int], *, name: str) -> str:
    wanted = " and ".join(map(str, widths))
    return f"{where} has width {width}; {name} ({description.family.name}) uses text encoders of width {wanted}"
