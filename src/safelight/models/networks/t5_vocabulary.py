"""T5's tokenizer, for single-file checkpoints, which do not contain it (t5_words/LICENSES.md)."""

import gzip
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from safelight.models.networks.t5 import END, PAD, T5Tokenizer

PIECES = Path(__file__).parent / "t5_words" / "spiece.model.gz"
NUM_WORDS = 32_100
EXTRA = 100
"""Sentinel tokens at the end of the vocabulary, which mark gaps in T5's training."""
PAD_ID, END_ID, UNKNOWN_ID = 0, 1, 2


@cache
def t5_tokenizer() -> T5Tokenizer:
    """Build the same tokenizer as the tokenizer.json of the published folders."""
    pieces, charsmap = read_pieces()
    extra = [f"<extra_id_{number}>" for number in reversed(range(EXTRA))]
    backend = tokenizers.Tokenizer(models.Unigram([*pieces, *((word, 0.0) for word in extra)], unk_id=UNKNOWN_ID))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(tokenizers.Regex(" {2,}"), "▁"),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.add_special_tokens([PAD, END, pieces[UNKNOWN_ID][0], *extra])
    assert backend.get_vocab_size() == NUM_WORDS
    return T5Tokenizer(backend, END_ID, PAD_ID)


def read_pieces() -> tuple[list[tuple[str, float]], bytes]:
    """Return words with scores and the character normalisation map: fields 1 and 3 of SentencePiece's ModelProto."""
    pieces: list[tuple[str, float]] = []
    charsmap = b""
    for number, value in fields(gzip.decompress(PIECES.read_bytes())):
        match number:
            case 1:
                inner = dict(fields(value))
                pieces.append((inner[1].decode(), struct.unpack("<f", inner[2])[0]))
            case 3:
                charsmap = dict(fields(value))[2]
            case _:
                pass
    return pieces, charsmap


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each field of a protobuf message, except varint fields."""
    place = 0
    while place < len(data):
        key, place = varint(data, place)
        match key & 7:
            case 0:  # a varint
                _, place = varint(data, place)
                continue
            case 1:  # a double
                length = 8
            case 5:  # a float
                length = 4
            case kind:  # length-delimited
                assert kind == 2, f"SentencePiece has no field of wire type {kind}"
                length, place = varint(data, place)
        yield key >> 3, data[place : place + length]
        place += length


def varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
