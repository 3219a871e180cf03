"""Parts that stand in for a model's own, request by request: an autoencoder, or text encoders.

What comes out of `dress` is a model with the same network and the same digest, so pictures that differ only in these
parts share their calls of the network.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from safelight.errors import UnsupportedOption
from safelight.models.checkpoints.families import Description, read_config, text_widths
from safelight.models.checkpoints.part_folder import PartFolder, PartSource
from safelight.models.networks.components import Outline, Weights, load_weights, open_parts
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
from safelight.models.weights.ldm_weights import beginning, vae_from_ldm
from safelight.models.weights.safetensors_file import NETWORK, TEXT_ENCODER
from safelight.models.weights.scaled import ScaledWeights
from safelight.models.weights.single_file import T5_WORDS, VAES, text_prefixes
from safelight.models.weights.tensor_file import TensorFile
from safelight.spec import Denoised
from safelight.spec.parts import PartName, PinnedPart

UNSEEN = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "norm_num_groups")
"""What a file of weights alone cannot say of an autoencoder: as in the model's own."""
OF_T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
"""A tensor that every T5 has."""
Config = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Encoders:
    """Those that stand in for a model's own, and none of its own: they may be in memory for longer than it."""

    clips: Mapping[str, TextEncoder] = field(default_factory=dict[str, TextEncoder])
    """By the folder of the model's."""
    t5: T5 | None = None


@dataclass(slots=True)
class PartCache:
    folder: PartFolder
    loaded: dict[tuple[str, ...], Any] = field(default_factory=dict[tuple[str, ...], Any])
    fitting: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])
    """The digests of parts and models of which it is known that they go together."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def dress(self, model: Model, spec: Denoised) -> Model:
        """The model, with those parts in the place of its own that the spec names.

        Raises:
            UnknownPart, InvalidRequest: gone, or another file by now.
            UnsafeFile, CorruptModel: it cannot be read.
            UnsupportedOption: it is made for another family of models.
        """
        if spec.vae is not None:
            source = self.folder.pinned("vae", spec.vae)
            vae, lock = self.kept("vae", source, model, lambda: (load_vae(source, model), threading.Lock()))
            model = replace(model, vae=vae, vae_lock=lock, vae_digest=source.digest)
        if spec.text_encoder is not None:
            source = self.folder.pinned("text_encoder", spec.text_encoder)
            found = self.kept("text_encoder", source, model, lambda: load_encoders(source, model))
            own = zip(model.description.family.text_encoders, model.text_encoders, strict=True)
            clips = tuple(found.clips.get(part, encoder) for part, encoder in own)
            model = replace(model, text_encoders=clips, t5=found.t5 or model.t5, text_digest=source.digest)
        return model

    def require_fit(self, part: PartName, pin: PinnedPart, outline: Outline, model_digest: str) -> None:
        """Raises what loading it for this model would, from headers; each is looked at once for a model."""
        if (part, pin.digest, model_digest) in self.fitting:
            return
        source = self.folder.pinned(part, pin)
        if part == "vae":
            config, weights = fitting_vae(source, outline.description, name=outline.name)
            wanted = outlined(network_classes().vae, config, weights.where).state_dict()
            found = {fitting_name(name, wanted): tensor.shape for name, tensor in weights.tensors.items()}
            require_shapes(wanted, found, weights.where)
        elif source.checkpoint is None:
            require_readable(source, outline.description, name=outline.name)
        else:
            require_all_alike(source.checkpoint, outline.description, name=outline.name)
        self.fitting.add((part, pin.digest, model_digest))

    def allocations(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        """What these take of the memory for weights."""
        wanted: dict[PartName, PinnedPart | None] = {"vae": spec.vae, "text_encoder": spec.text_encoder}
        return [
            self.allocation(part, pin, spec.model_digest, placement) for part, pin in wanted.items() if pin is not None
        ]

    def allocation(self, part: PartName, pin: PinnedPart, model_digest: str, placement: Placement) -> Allocation:
        source = self.folder.pinned(part, pin)
        key = (part, source.digest, model_digest)
        size = weights_bytes(self.folder.files(part, source), placement, beginnings(part, source))
        return Allocation(key=key, kind=part, name=pin.name, size_bytes=size, drop=lambda: self.loaded.pop(key, None))

    def kept(self, part: PartName, source: PartSource, model: Model, load: Callable[[], T]) -> T:
        with self.lock:
            key = (part, source.digest, model.digest)
            if key not in self.loaded:
                self.loaded[key] = load()
            found: T = self.loaded[key]
            return found


def beginnings(part: PartName, source: PartSource) -> Sequence[str]:
    """Of the names of the part's tensors in the source's files."""
    about = source.checkpoint
    if about is None or not about.is_file:
        return ("",)
    return VAES if part == "vae" else text_prefixes(about.family.name, t5=bool(about.t5))


def load_vae(source: PartSource, model: Model) -> VAE:
    config, weights = fitting_vae(source, model.description, name=model.name)
    return VAE(build(network_classes().vae, config, weights, model.placement))


def fitting_vae(source: PartSource, about: Description, *, name: str) -> tuple[Config, Weights]:
    """
    Raises:
        UnsupportedOption: it is no autoencoder, or one of other latents than the model's.
    """
    config, weights = vae_parts(source, about)
    own = about.vae
    for what, ours, theirs in (
        ("channels", own["latent_channels"], config.get("latent_channels", 4)),
        ("scale", len(own["block_out_channels"]), len(config["block_out_channels"])),
        ("scaling factor", own.get("scaling_factor", 0.18215), config.get("scaling_factor", 0.18215)),
        ("shift", own.get("shift_factor") or 0, config.get("shift_factor") or 0),
    ):
        if ours != theirs:
            raise UnsupportedOption(
                "vae",
                f"{source.path} is another family's: the {what} of its latents is {theirs}, and {name}'s {ours}",
            )
    return config, weights


def vae_parts(source: PartSource, about: Description) -> tuple[Config, Weights]:
    if source.checkpoint is not None:
        return source.checkpoint.vae, open_parts(source.checkpoint).weights("vae")
    if source.path.is_dir():
        return read_config(source.path / "config.json"), load_weights(source.path, NETWORK)
    file = TensorFile(source.path)
    own = about.vae
    if any(name.startswith("encoder.down_blocks.") for name in file):
        return own, Weights(source.path, {name: file[name] for name in file}, (file,))
    try:
        config = vae_configuration(Shapes(file.header, "")) | {name: own[name] for name in UNSEEN if name in own}
    except MissingTensors:
        raise UnsupportedOption("vae", f"{source.path} holds no autoencoder") from None
    tensors = vae_from_ldm(beginning(file, ""), vae_modules(config))
    return config, Weights(source.path, tensors, (file,))


def load_encoders(source: PartSource, model: Model) -> Encoders:
    """All that the source has."""
    about = source.checkpoint
    if about is None:
        return lone_encoder(source, model)
    parts, clips = open_parts(about), dict[str, TextEncoder]()
    require_no_more(about, model.description, name=model.name)
    for part in about.family.text_encoders:
        config = fitting(about.configuration(part), model, part, where=str(about.path))
        network = build(network_classes().text_encoder, config, parts.weights(part), model.placement)
        clips[part] = TextEncoder(parts.tokenizer(part), network)
    if not about.t5:
        return Encoders(clips)
    config = about.configuration(about.t5)
    require_t5_fits(config, model.description, name=model.name, where=str(about.path))
    network = build(transformer_classes().t5, config, parts.weights(about.t5), model.placement)
    return Encoders(clips, T5(parts.t5_tokenizer(), network))


def lone_encoder(source: PartSource, model: Model) -> Encoders:
    """A CLIP replaces the one of its width; it and a T5 read the words of the tokenizer of the one they replace."""
    config, weights, is_t5 = lone_parts(source)
    if is_t5:
        return Encoders(t5=lone_t5(source, config, weights, model))
    family = model.description.family
    width, widths = config.get("hidden_size", 512), [encoder.width for encoder in model.text_encoders]
    if width not in widths:
        about = model.description
        raise UnsupportedOption("text_encoder", wrong_width(str(source.path), width, about, widths, name=model.name))
    number = widths.index(width)
    part = family.text_encoders[number]
    config = fitting(config, model, part, where=str(source.path))
    network = build(network_classes().text_encoder, config, weights, model.placement)
    return Encoders({part: TextEncoder(model.text_encoders[number].tokenizer, network)})


def lone_parts(source: PartSource) -> tuple[Config, Weights, bool]:
    """The configuration, the weights, and whether it is a T5.

    Raises:
        UnsupportedOption: it is neither a CLIP nor a T5.
    """
    if source.path.is_dir():
        config, weights = read_config(source.path / "config.json"), load_weights(source.path, TEXT_ENCODER)
        return config, weights, config.get("model_type") == "t5"
    file = TensorFile(source.path)
    is_t5, shapes = OF_T5 in file, Shapes(file.header, "")
    try:
        config = t5_configuration(shapes) if is_t5 else clip_configuration(shapes, TextPart("", open_clip=False))
    except MissingTensors:
        raise UnsupportedOption("text_encoder", f"{source.path} holds no CLIP text encoder, and no T5") from None
    return config, Weights(source.path, ScaledWeights(file), (file,)), is_t5


def require_readable(source: PartSource, about: Description, *, name: str) -> None:
    """Raises UnsupportedOption where a text encoder on its own is for no model of this family."""
    config, _, is_t5 = lone_parts(source)
    if is_t5:
        require_t5_fits(config, about, name=name, where=str(source.path))
    elif (width := config.get("hidden_size", 512)) not in (widths := [*text_widths(about)]):
        raise UnsupportedOption("text_encoder", wrong_width(str(source.path), width, about, widths, name=name))


def lone_t5(source: PartSource, config: Config, weights: Weights, model: Model) -> T5:
    require_t5_fits(config, model.description, name=model.name, where=str(source.path))
    own: Any = model.t5 and model.t5.network.config
    words, wanted = config.get("vocab_size"), own.vocab_size if own else T5_WORDS
    if words != wanted:
        raise UnsupportedOption("text_encoder", f"{source.path} knows {words} words, and its tokenizer is for {wanted}")
    network = build(transformer_classes().t5, config, weights, model.placement)
    return T5(model.t5.tokenizer if model.t5 else t5_tokenizer(), network)


def require_t5_fits(config: Config, about: Description, *, name: str, where: str) -> None:
    if not about.family.t5:
        raise UnsupportedOption("text_encoder", f"{where} has a T5, and {name} ({about.family.name}) reads none")
    width, wanted = config.get("d_model"), about.unet["joint_attention_dim"]
    if width != wanted:
        said = f"{where} has a T5 that is {width} wide; {name} reads one of {wanted}"
        raise UnsupportedOption("text_encoder", said)


def fitting(config: Config, model: Model, part: str, *, where: str) -> Config:
    """The configuration, once it is known to make what the network can read; with a projection where that is read."""
    number = model.description.family.text_encoders.index(part)
    own: Any = model.text_encoders[number].network.config
    require_alike(config, own.to_dict(), model.description, name=model.name, where=where)
    return {**config, "architectures": own.architectures}


def require_alike(config: Config, own: Config, about: Description, *, name: str, where: str) -> None:
    """Raises UnsupportedOption where a text encoder has another width, or other words, than the model's own."""
    (width, words), (wanted, known) = (
        (one.get("hidden_size", 512), one.get("vocab_size", 49408)) for one in (config, own)
    )
    if width != wanted:
        raise UnsupportedOption("text_encoder", wrong_width(where, width, about, [wanted], name=name))
    if words != known:
        raise UnsupportedOption("text_encoder", f"{where} knows {words} words, and {name}'s own {known}")


def require_all_alike(other: Description, about: Description, *, name: str) -> None:
    """The same for all text encoders of a checkpoint."""
    where = str(other.path)
    require_no_more(other, about, name=name)
    for part in other.family.text_encoders:
        require_alike(other.configuration(part), about.configuration(part), about, name=name, where=where)
    if other.t5:
        require_t5_fits(other.configuration(other.t5), about, name=name, where=where)


def require_no_more(other: Description, about: Description, *, name: str) -> None:
    if beyond := [part for part in other.family.text_encoders if part not in about.family.text_encoders]:
        raise UnsupportedOption(
            "text_encoder", f"{other.path} is {other.family.name} and has a {beyond[0]}; {name} has none"
        )


def wrong_width(where: str, width: int, about: Description, widths: list[int], *, name: str) -> str:
    wanted = " and ".join(map(str, widths))
    return f"{where} is {width} wide; {name} ({about.family.name}) reads text encoders of {wanted}"
