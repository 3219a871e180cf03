"""Split prompts of any length into chunks of token ids, each as long as the text encoder's context.

A chunk is begin + content + end + padding. A prompt that fits in one chunk and has no weights gets exactly the ids
that diffusers gives the text encoder; longer prompts are split as AUTOMATIC1111 splits them.

The vocabulary is read with the `tokenizers` package alone: importing transformers would take seconds. The rules are
those of transformers 5's CLIPTokenizer, which also reads only vocabulary and merges.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers.models import BPE

from safelight.errors import CorruptModel, InvalidRequest
from safelight.models.checkpoints.families import read_config
from safelight.models.networks.textual_inversion import split_at_names
from safelight.prompts.weights import Break, Weighted, parse

COMMA_BACKTRACK = 20
"""Tokens after the last comma, at most this many, move to the next chunk together (A1111's default)."""
MAX_CHUNKS = 64
"""4800 tokens for Stable Diffusion: enough for English of the maximum length of a spec's prompt; bounds the memory."""
CLIP_LENGTH = 77
PLACEHOLDER_ID = 0
"""The id at positions of embedding vectors. Any id except the end token's would do: it is never read."""
WORD_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NO_EMBEDDINGS: Mapping[str, int] = {}
SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
"""The names CLIP's configuration files use, with their defaults."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A CLIP vocabulary and the ids that frame a chunk."""

    backend: tokenizers.Tokenizer
    bos: int
    eos: int
    pad: int
    comma: int | None
    max_length: int

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """Read a tokenizer folder: `tokenizer.json`, or `vocab.json` with `merges.txt`.

        Raises:
            CorruptModel: files are missing, damaged, or not of a CLIP tokenizer.
        """
        special, added, max_length = read_settings(folder)
        vocabulary, merges = read_vocabulary(folder)
        try:
            return assemble(vocabulary, merges, special=special, added=added, max_length=max_length)
        except Exception as error:  # noqa: BLE001  the tokenizers package raises nothing more precise
            raise CorruptModel(f"{folder} holds no CLIP vocabulary: {error}") from None

    @property
    def vocabulary_size(self) -> int:
        return self.backend.get_vocab_size()

    def ids(self, text: str) -> list[int]:
        """Return the text's token ids, without begin and end."""
        # Browsers may cut an emoji in half; the lone surrogate is invalid text, and the backend would refuse it.
        repaired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return self.backend.encode(repaired, add_special_tokens=False).ids


class Vector(NamedTuple):
    """One vector of an embedding."""

    name: str
    number: int


class Token(NamedTuple):
    id: int
    weight: float
    vector: Vector | None = None
    """The vector that replaces the id's own embedding."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row for the text encoder: `max_length` ids and their weights."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    vectors: tuple[tuple[int, Vector], ...] = ()
    """Positions whose token embedding is replaced."""


def assemble(
    vocabulary: Mapping[str, int],
    merges: list[tuple[str, str]],
    *,
    special: Mapping[str, AddedToken],
    added: Mapping[int, AddedToken],
    max_length: int,
) -> Tokenizer:
    """Build a tokenizer from its vocabulary; `special` holds the four of SPECIAL_TOKENS by name."""
    backend = clip_backend(vocabulary, merges, unknown=special["unk_token"].content)
    backend.add_tokens([token for _, token in sorted(added.items())])  # pyright: ignore[reportUnknownMemberType]
    backend.add_special_tokens(list(special.values()))  # pyright: ignore[reportUnknownMemberType]
    known = backend.get_vocab()
    bos, eos, pad = (known[special[name].content] for name in ("bos_token", "eos_token", "pad_token"))
    return Tokenizer(backend, bos, eos, pad, known.get(",</w>"), max_length)


def chunk(prompt: str, tokenizer: Tokenizer, embeddings: Mapping[str, int] = NO_EMBEDDINGS) -> list[Chunk]:
    """Return the prompt's chunks; an empty prompt has one. `embeddings` maps names to numbers of vectors.

    Raises:
        InvalidRequest: an invalid weight, more than `MAX_CHUNKS` chunks, or an embedding longer than a chunk.
    """
    contents = cut(parse(prompt), tokenizer, embeddings)
    if len(contents) > MAX_CHUNKS:
        capacity = tokenizer.max_length - 2
        raise InvalidRequest(f"prompt: needs {len(contents)} chunks of {capacity} tokens; at most {MAX_CHUNKS}")
    return [frame(content, tokenizer) for content in contents]


def cut(
    pieces: Iterable[Weighted | Break], tokenizer: Tokenizer, embeddings: Mapping[str, int] = NO_EMBEDDINGS
) -> list[list[Token]]:
    """Return weighted tokens, split where a chunk is full or at a `BREAK`, after a comma if one is near.

    The vectors of an embedding stay together: if they do not fit, the next chunk begins.
    """
    capacity = tokenizer.max_length - 2
    contents: list[list[Token]] = [[]]
    comma = None  # index of the last comma in the last chunk
    for piece in pieces:
        if isinstance(piece, Break):
            contents.append([])
            comma = None
            continue
        for unit in split_units(piece, tokenizer, embeddings):
            content, token = contents[-1], unit[0].id
            if len(unit) > capacity:
                raise InvalidRequest(f"prompt: an embedding of {len(unit)} vectors; a chunk holds at most {capacity}")
            if len(content) + len(unit) > capacity:
                unsplittable = len(unit) > 1 or token == tokenizer.comma
                comma_is_near = comma is not None and not unsplittable and capacity - comma <= COMMA_BACKTRACK
                cut_at = comma + 1 if comma_is_near and comma is not None else len(content)
                contents[-1:] = [content[:cut_at], content[cut_at:]]
                comma = None
            if token == tokenizer.comma:
                comma = len(contents[-1])
            contents[-1] += unit
    # A BREAK at the very end starts no chunk.
    return contents[:-1] if len(contents) > 1 and not contents[-1] else contents


def split_units(piece: Weighted, tokenizer: Tokenizer, embeddings: Mapping[str, int]) -> Iterator[list[Token]]:
    """Yield units that must stay in one chunk: a token, or all the vectors of an embedding."""
    for place, text in enumerate(split_at_names(piece.text, embeddings)):
        if place % 2:
            yield [Token(PLACEHOLDER_ID, piece.weight, Vector(text, number)) for number in range(embeddings[text])]
        else:
            for token in tokenizer.ids(text):
                yield [Token(token, piece.weight)]


def frame(content: list[Token], tokenizer: Tokenizer) -> Chunk:
    padding = tokenizer.max_length - 2 - len(content)
    return Chunk(
        ids=(tokenizer.bos, *(token.id for token in content), tokenizer.eos, *[tokenizer.pad] * padding),
        weights=(1.0, *(token.weight for token in content), 1.0, *[1.0] * padding),
        vectors=tuple((place, token.vector) for place, token in enumerate(content, 1) if token.vector is not None),
    )


def clip_backend(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], *, unknown: str) -> tokenizers.Tokenizer:
    """Return a backend with CLIP's normalisation rules, as in transformers/models/clip/tokenization_clip.py."""
    backend = tokenizers.Tokenizer(
        BPE(
            vocab=dict(vocabulary),
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=unknown,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


def read_vocabulary(folder: Path) -> tuple[Mapping[str, int], list[tuple[str, str]]]:
    """Read the file that transformers 5 writes, else the two files of transformers 4."""
    tokenizer_json, vocabulary, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    try:
        if tokenizer_json.is_file():
            model = read_config(tokenizer_json)["model"]
            return model["vocab"], [split_merge(merge) for merge in model["merges"]]
        return BPE.read_file(str(vocabulary), str(merges))
    except CorruptModel:
        raise
    except Exception as error:  # noqa: BLE001  as above
        raise CorruptModel(
            f"{folder} lacks a readable tokenizer: tokenizer.json, or vocab.json and merges.txt ({error})"
        ) from None


def split_merge(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def read_settings(folder: Path) -> tuple[dict[str, AddedToken], dict[int, AddedToken], int]:
    """Return the special tokens by name, other added tokens by id, and the length of a chunk.

    transformers since 4.34 lists added tokens in `tokenizer_config.json`; older folders spread them over
    `special_tokens_map.json` and `added_tokens.json`, and transformers 5 repeats them in `tokenizer.json`.
    """
    config = read_if_there(folder / "tokenizer_config.json")
    added: dict[int, AddedToken] = {}
    try:
        if (listed := config.get("added_tokens_decoder")) is not None:
            added |= {int(number): read_token(token) for number, token in listed.items()}
        else:
            config |= read_if_there(folder / "special_tokens_map.json")
            for text, number in read_if_there(folder / "added_tokens.json").items():
                added[number] = AddedToken(text, normalized=True, special=False)
            for token in read_if_there(folder / "tokenizer.json").get("added_tokens", []):
                added[token["id"]] = read_token(token)
        by_content = {token.content: token for token in added.values()}
        special: dict[str, AddedToken] = {}
        for name, default in SPECIAL_TOKENS.items():
            token = read_token(config.get(name) or default)
            special[name] = by_content.get(token.content, token)
        max_length = config.get("model_max_length", config.get("max_len"))
        # If absent, transformers assumes 10^30; every known CLIP reads 77.
        length = CLIP_LENGTH if max_length is None or max_length > 10_000 else int(max_length)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptModel(f"{folder}: missing or invalid in the tokenizer's configuration: {error}") from None
    if length < 3:
        raise CorruptModel(f"{folder}: model_max_length is {length}; a chunk needs at least 3 tokens")
    return special, added, length


def read_token(value: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{"special": True} | {flag: value[flag] for flag in flags if flag in value})


def read_if_there(path: Path) -> dict[str, Any]:
    return read_config(path) if path.is_file() else {}
