"""The weights and tokenizers of a checkpoint, in a folder or in one file, and its networks without weights."""

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
    """One component's tensors by name; each is read into memory when it is used."""

    where: Path
    tensors: "Mapping[str, Tensor]"
    files: tuple[TensorFile, ...]

    def release(self, tensor: "Tensor") -> None:
        """Free the memory behind a tensor (any shape) that has been copied and will not be read again."""
        for file in self.files:
            file.release(tensor)


class Components(Protocol):
    def weights(self, part: str) -> Weights: ...
    def tokenizer(self, part: str) -> Tokenizer: ...
    def t5_tokenizer(self) -> T5Tokenizer: ...


@dataclass(frozen=True, slots=True)
class FolderComponents:
    description: Description

    def weights(self, part: str) -> Weights:
        """
        Raises:
            UnsafeFile: the weights exist only in a format that can carry code.
            CorruptModel: the weights are missing or damaged.
        """
        return load_weights(
            self.description.path / part, TEXT_ENCODER if part in self.description.prompt_encoders else NETWORK
        )

    def tokenizer(self, part: str) -> Tokenizer:
        return Tokenizer.load(self.description.path / tokenizer_of(part))

    def t5_tokenizer(self) -> T5Tokenizer:
        return T5Tokenizer.load(self.description.path / tokenizer_of(self.description.t5))


@dataclass(frozen=True, slots=True)
class FileComponents:
    description: Description
    file: TensorFile = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", TensorFile(self.description.path))

    def weights(self, part: str) -> Weights:
        description = self.description
        try:
            tensors = from_ldm(
                ScaledWeights(self.file), part, family=description.family.name, config=description.configuration(part)
            )
        except CorruptModel as error:
            raise CorruptModel(f"{description.path}: {error}") from None
        return Weights(description.path, tensors, (self.file,))

    def tokenizer(self, part: str) -> Tokenizer:
        words = self.description.configuration(part)["vocab_size"]
        if words != NUM_WORDS:
            raise CorruptModel(
                f"{self.description.path}: {part} has a vocabulary of {words}; CLIP's has {NUM_WORDS} words"
            )
        return clip_tokenizer(pad="!" if TEXT_PARTS[self.description.family.name][part].open_clip else END)

    def t5_tokenizer(self) -> T5Tokenizer:
        words = self.description.configuration(self.description.t5)["vocab_size"]
        if words != T5_WORDS:
            raise CorruptModel(
                f"{self.description.path}: its T5 has a vocabulary of {words}; T5's has {T5_WORDS} words"
            )
        return t5_tokenizer()


def open_components(description: Description) -> Components:
    return FileComponents(description) if description.is_file else FolderComponents(description)


def load_weights(folder: Path, stem: str) -> Weights:
    """Open the tensors of a diffusers component; `stem` is NETWORK or TEXT_ENCODER."""
    files = tuple(TensorFile(path) for path in weight_files(folder, stem))
    return Weights(folder, {name: file[name] for file in files for name in file}, files)


@dataclass(frozen=True, eq=False)
class Outline:
    """A checkpoint without its weights: the names and shapes of its networks, and its vocabulary.

    Enough to check whether a LoRA or a component fits, before any weights are loaded.
    """

    name: str
    description: Description

    @cached_property
    def networks(self) -> "dict[Part, nn.Module]":
        """The denoising network and all text encoders, on the meta device."""
        description, classes = self.description, network_classes()
        networks: dict[Part, nn.Module] = {"unet": denoiser_class(description.family.name)(description.unet)}
        for part in description.prompt_encoders:
            make = transformer_classes().t5 if part == description.t5 else classes.text_encoder
            networks[part] = make(description.configuration(part))
        return networks

    @property
    def unet(self) -> Any:
        return self.networks["unet"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The first text encoder's tokenizer; the others split a prompt into the same chunks."""
        return open_components(self.description).tokenizer(self.description.family.text_encoders[0])

    @property
    def num_layers(self) -> int:
        """Layers of the shallowest text encoder that `clip_skip` applies to."""
        description = self.description
        return min(
            int(description.configuration(part).get("num_hidden_layers", 12))
            for part in description.family.text_encoders
        )
