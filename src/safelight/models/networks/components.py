"""Where a checkpoint's weights and tokenizers are, in a folder or in one file; and what it is without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safelight.errors import CorruptModel
from safelight.models.checkpoints.families import Description, tokenizer_of
from safelight.models.networks.clip_vocabulary import END, NUM_WORDS, clip_tokenizer
from safelight.models.networks.networks import denoiser_class, network_classes, transformer_classes
from safelight.models.networks.t5 import T5Tokenizer
from safelight.models.networks.t5_vocabulary import t5_tokenizer
from safelight.models.networks.tokenize import Tokenizer
from safelight.models.weights.ldm_weights import from_ldm
from safelight.models.weights.lora_file import Part
from safelight.models.weights.safetensors_file import NETWORK, TEXT_ENCODER, weight_files
from safelight.models.weights.scaled import ScaledWeights
from safelight.models.weights.single_file import T5_WORDS, TEXT_PARTS
from safelight.models.weights.tensor_file import TensorFile

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Weights:
    """One part's tensors by name, in memory only once they are read."""

    where: Path
    tensors: "Mapping[str, Tensor]"
    files: tuple[TensorFile, ...]

    def let_go(self, tensor: "Tensor") -> None:
        """It has been copied, and will not be read again."""
        for file in self.files:
            file.let_go(tensor)


class Components(Protocol):
    def weights(self, part: str) -> Weights: ...
    def tokenizer(self, part: str) -> Tokenizer: ...
    def t5_tokenizer(self) -> T5Tokenizer: ...


@dataclass(frozen=True, slots=True)
class FolderComponents:
    about: Description

    def weights(self, part: str) -> Weights:
        """
        Raises:
            UnsafeFile: the weights are there only in a format that can carry code.
            CorruptModel: they are missing or damaged.
        """
        return load_weights(self.about.path / part, TEXT_ENCODER if part in self.about.readers else NETWORK)

    def tokenizer(self, part: str) -> Tokenizer:
        return Tokenizer.load(self.about.path / tokenizer_of(part))

    def t5_tokenizer(self) -> T5Tokenizer:
        return T5Tokenizer.load(self.about.path / tokenizer_of(self.about.t5))


@dataclass(frozen=True, slots=True)
class FileComponents:
    about: Description
    file: TensorFile = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", TensorFile(self.about.path))

    def weights(self, part: str) -> Weights:
        about = self.about
        try:
            tensors = from_ldm(
                ScaledWeights(self.file), part, family=about.family.name, config=about.configuration(part)
            )
        except CorruptModel as error:
            raise CorruptModel(f"{about.path}: {error}") from None
        return Weights(about.path, tensors, (self.file,))

    def tokenizer(self, part: str) -> Tokenizer:
        words = self.about.configuration(part)["vocab_size"]
        if words != NUM_WORDS:
            raise CorruptModel(f"{self.about.path}: {part} knows {words} words; CLIP's vocabulary has {NUM_WORDS}")
        return clip_tokenizer(pad="!" if TEXT_PARTS[self.about.family.name][part].open_clip else END)

    def t5_tokenizer(self) -> T5Tokenizer:
        words = self.about.configuration(self.about.t5)["vocab_size"]
        if words != T5_WORDS:
            raise CorruptModel(f"{self.about.path}: its T5 has {words} words; T5's vocabulary has {T5_WORDS}")
        return t5_tokenizer()


def open_parts(about: Description) -> Components:
    return FileComponents(about) if about.is_file else FolderComponents(about)


def load_weights(folder: Path, stem: str) -> Weights:
    """The tensors of a diffusers component; `stem` is NETWORK or TEXT_ENCODER."""
    files = tuple(TensorFile(path) for path in weight_files(folder, stem))
    return Weights(folder, {name: file[name] for file in files for name in file}, files)


@dataclass(frozen=True, eq=False)
class Outline:
    """A checkpoint without its weights: the names and shapes of its networks, and the words that it knows.

    Enough to say whether something fits it, before anything of it is in memory.
    """

    name: str
    description: Description

    @cached_property
    def networks(self) -> "dict[Part, nn.Module]":
        """What denoises, and all that reads the prompt; on no device."""
        about, classes = self.description, network_classes()
        networks: dict[Part, nn.Module] = {"unet": denoiser_class(about.family.name)(about.unet)}
        for part in about.readers:
            make = transformer_classes().t5 if part == about.t5 else classes.text_encoder
            networks[part] = make(about.configuration(part))
        return networks

    @property
    def unet(self) -> Any:
        return self.networks["unet"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the first text encoder; the others cut a prompt into the same chunks."""
        return open_parts(self.description).tokenizer(self.description.family.text_encoders[0])

    @property
    def num_layers(self) -> int:
        """Of the shallowest text encoder that `clip_skip` counts in."""
        about = self.description
        return min(int(about.configuration(part).get("num_hidden_layers", 12)) for part in about.family.text_encoders)
