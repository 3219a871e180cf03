"""Textual inversion: new words for a text encoder, as vectors that replace token embeddings.

A prompt names a file by its name without suffix. Three layouts are supported, all safetensors:

| tensors | made by | for |
|---|---|---|
| `emb_params`: (n, width) | AUTOMATIC1111 | SD 1 (width 768), SD 2 (1024) |
| one tensor by any name, `<my-cat>`: (width,) or (n, width) | diffusers | the same |
| `clip_l`: (n, 768), `clip_g`: (n, 1280) | SDXL trainers | SDXL |

n vectors take the place of n consecutive tokens.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import CorruptModel, UnsafeFile, UnsupportedOption
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.weights.safetensors_file import WHY_NOT, conversion_of, read_header
from safelight.spec.parts import PinnedEmbedding

if TYPE_CHECKING:
    from torch import Tensor

MADE_FOR: Mapping[tuple[int, ...], str] = {
    (768,): "Stable Diffusion 1",
    (1024,): "Stable Diffusion 2",
    (768, 1280): "SDXL",
    (1280,): "SDXL",
}
"""By the widths of the text encoders."""
MAX_BYTES = 64 * 2**20
"""Far above any embedding; a checkpoint in the wrong folder is refused before it is read."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """One file in memory. Equality is by name and digest, so that it can be part of a cache key."""

    name: str
    digest: str
    vectors: "tuple[Tensor, ...]" = field(compare=False, repr=False)
    """(n, width) for each text encoder of its family."""

    @property
    def num_vectors(self) -> int:
        return len(self.vectors[0])

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(tensor.shape[1] for tensor in self.vectors)


def names_in(words: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that occur in the text as whole words, in alphabetical order; case is ignored."""
    plain = re.sub(r"\\([\\()\[\]])", r"\1", words)
    found = {match[0].casefold() for match in pattern_of(tuple(names)).finditer(plain)} if names else set[str]()
    return tuple(sorted(name for name in names if name.casefold() in found))


@lru_cache(maxsize=256)
def pattern_of(names: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern for any of the names as a whole word, the longest first."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(word_pattern, longest_first)), re.IGNORECASE)


def word_pattern(name: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", name) else ""
    return before + re.escape(name) + after


def split_at_names(text: str, names: Mapping[str, int]) -> list[str]:
    """Split the text; the pieces at odd indices are names, in the mapping's spelling."""
    if not names:
        return [text]
    spelt = {name.casefold(): name for name in names}
    pieces: list[str] = []
    end = 0
    for match in pattern_of(tuple(names)).finditer(text):
        pieces += [text[end : match.start()], spelt[match[0].casefold()]]
        end = match.end()
    return [*pieces, text[end:]]


def pin_embeddings(
    catalogue: Catalogue, prompts: Sequence[str], *, model: str, model_widths: Callable[[], Sequence[int]]
) -> tuple[PinnedEmbedding, ...]:
    """Return the embeddings that these prompts name, checked against the widths of the model's text encoders.

    Raises:
        UnsupportedOption: an embedding is for another family.
        UnsafeFile, CorruptModel: a file cannot be read as an embedding.
    """
    words = "\n".join(prompts)
    refuse_pickles(words, catalogue.pickles("embedding"))
    names = catalogue.names("embedding")
    numbered = [f"{name}@{number}" for name in names for number in versions_in(words, name)]
    named = {name: catalogue.find(name, "embedding") for name in names_in(words, [*names, *numbered])}
    for name, path in named.items():
        widths = [shape[-1] for shape in shapes_of(path).values()]
        require_fit(name, widths, model=model, model_widths=model_widths())
    return tuple(PinnedEmbedding(name=name, digest=catalogue.sum(path)) for name, path in named.items())


def versions_in(words: str, name: str) -> set[str]:
    """`brand@3`: versions are not listed one by one, and can be named all the same."""
    found = re.findall(re.escape(name) + r"@([1-9]\d*)(?!\w)", words, re.IGNORECASE)
    return set(found)


def refuse_pickles(words: str, pickles: Mapping[str, Path]) -> None:
    """Raise UnsafeFile for an embedding that exists only as a pickle: it must not silently count as plain words."""
    for name in names_in(words, sorted(pickles)):
        raise UnsafeFile(f"embedding {name!r} is {pickles[name]}, {WHY_NOT}: {conversion_of(pickles[name])}")


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the embedding's tensors by name, from the header alone; `clip_l` before `clip_g`.

    Raises:
        CorruptModel: the file is not a textual inversion in a known layout.
    """
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise CorruptModel(f"{path} is no embedding: it is larger than {MAX_BYTES >> 20} MiB")
    shapes = {name: entry.shape for name, entry in read_header(path).tensors.items()}
    if shapes.keys() == {"clip_l", "clip_g"}:
        shapes = {name: shapes[name] for name in ("clip_l", "clip_g")}
    elif "emb_params" in shapes:
        shapes = {"emb_params": shapes["emb_params"]}
    elif len(shapes) != 1:
        known = "emb_params, clip_l and clip_g, or one tensor"
        raise CorruptModel(
            f"{path} is no embedding: it holds {', '.join(sorted(shapes)[:4]) or 'nothing'}, not {known}"
        )
    if any(not 1 <= len(shape) <= 2 or 0 in shape for shape in shapes.values()):
        raise CorruptModel(f"{path} is no embedding: its tensors are {', '.join(map(str, shapes.values()))}")
    if len({len(shape) == 2 and shape[0] for shape in shapes.values()}) > 1:
        raise CorruptModel(f"{path}: clip_l and clip_g hold different numbers of vectors")
    return shapes


def require_fit(name: str, widths: Sequence[int], *, model: str, model_widths: Sequence[int]) -> None:
    """Raise UnsupportedOption if an embedding was made for another family than the model's."""
    if tuple(widths) != tuple(model_widths):
        family = MADE_FOR.get(tuple(widths))
        made_for = f"is for {family}" if family else "is for another model"
        raise UnsupportedOption(
            "prompt",
            f"embedding {name!r} {made_for} (vectors of {join_widths(widths)}); "
            f"{model} needs {join_widths(model_widths)}",
        )


def join_widths(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))


def load_embedding(catalogue: Catalogue, name: str, digest: str) -> Embedding:
    """Load the vectors of the file that a spec pinned.

    Raises:
        InvalidRequest: the file is missing, or differs from the spec's.
    """
    return read_embedding(catalogue.pinned(name, digest, "embedding"), name, digest)


@lru_cache(maxsize=64)
def read_embedding(path: Path, name: str, digest: str) -> Embedding:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CorruptModel(f"{path} is damaged: {error}") from None
    vectors = [tensors[key].float() for key in shapes_of(path)]
    if not all(tensor.isfinite().all() for tensor in vectors):
        raise CorruptModel(f"{path} holds numbers that are not finite")
    return Embedding(name, digest, tuple(tensor.reshape(-1, tensor.shape[-1]) for tensor in vectors))
