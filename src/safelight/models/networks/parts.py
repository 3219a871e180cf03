"""Where a checkpoint's weights and tokenizers are: in a diffusers folder, or in one file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from safelight.errors import CorruptModel
from safelight.models.checkpoints.families import Description, tokenizer_of
from safelight.models.networks.clip_vocabulary import END, NUM_WORDS, clip_tokenizer
from safelight.models.networks.t5 import T5Tokenizer
from safelight.models.networks.t5_vocabulary import t5_tokenizer
from safelight.models.networks.tokenize import Tokenizer
from safelight.models.weights.ldm_weights import from_ldm
from safelight.models.weights.safetensors_file import NETWORK, TEXT_ENCODER, weight_files
from safelight.models.weights.scaled import Unscaled
from safelight.models.weights.single_file import T5_WORDS, TEXT_PARTS
from safelight.models.weights.tensor_file import TensorFile

if TYPE_CHECKING:
    from torch import Tensor


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


class Parts(Protocol):
    def weights(self, part: str) -> Weights: ...
    def tokenizer(self, part: str) -> Tokenizer: ...
    def t5_tokenizer(self) -> T5Tokenizer: ...


@dataclass(frozen=True, slots=True)
class FolderParts:
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
class FileParts:
    about: Description
    file: TensorFile = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", TensorFile(self.about.path))

    def weights(self, part: str) -> Weights:
        about = self.about
        try:
            tensors = from_ldm(Unscaled(self.file), part, family=about.family.name, config=about.configuration(part))
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


def open_parts(about: Description) -> Parts:
    return FileParts(about) if about.is_file else FolderParts(about)


def load_weights(folder: Path, stem: str) -> Weights:
    """The tensors of a diffusers component; `stem` is NETWORK or TEXT_ENCODER."""
    files = tuple(TensorFile(path) for path in weight_files(folder, stem))
    return Weights(folder, {name: file[name] for file in files for name in file}, files)
