"""CLIP's tokenizer, for single-file checkpoints, which do not contain it (clip/LICENSES.md)."""

import gzip
from functools import cache
from pathlib import Path

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel

from safelight.models.networks.tokenize import CLIP_LENGTH, Tokenizer, assemble

MERGES = Path(__file__).parent / "clip" / "merges.txt.gz"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
NUM_WORDS = 49_408


@cache
def clip_tokenizer(*, pad: str = END) -> Tokenizer:
    """Return the tokenizer of Stable Diffusion; 2.x and SDXL's second encoder pad with "!"."""
    vocabulary, merges = read_merges()
    special = {
        "bos_token": AddedToken(BEGIN, special=True, normalized=True),
        "eos_token": AddedToken(END, special=True, normalized=True),
        "unk_token": AddedToken(END, special=True, normalized=True),
        "pad_token": AddedToken(pad, special=True, normalized=False),
    }
    return assemble(vocabulary, merges, special=special, added={}, max_length=CLIP_LENGTH)


@cache
def read_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the BPE merges. Order of ids: bytes, bytes that end a word, merges, begin, end."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    merges = [(first, second) for first, second in (line.split(" ") for line in lines)]
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, BEGIN, END])}
    assert len(vocabulary) == NUM_WORDS
    return vocabulary, merges
