import gzip
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.models.networks.t5 import T5Tokenizer
from safelight.models.networks.t5_vocabulary import NUM_WORDS, PIECES, read_pieces, t5_tokenizer

PUBLISHED = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
"""The sha256 of spiece.model beside every T5 that Google published."""


def test_the_words_are_those_that_were_published() -> None:
    assert hashlib.sha256(gzip.decompress(PIECES.read_bytes())).hexdigest() == PUBLISHED
    assert t5_tokenizer().backend.get_vocab_size() == NUM_WORDS


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ("translate English to German: The house is wonderful.", [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5]),
        ("Das Haus ist wunderbar.", [644, 4598, 229, 19250, 5]),
        # Composed characters are made plain, and there is a place that stands for a gap in training.
        ("ﬁne ２x <extra_id_0>", [1399, 204, 226, 32099]),
    ],
)
def test_words_known_from_t5s_documentation_have_their_ids(words: str, ids: list[int]) -> None:
    chunk = t5_tokenizer().tokenize(words, 16)
    assert chunk.ids == (*ids, 1, *[0] * (15 - len(ids)))


@pytest.fixture(scope="module")
def theirs() -> T5Tokenizer:
    """transformers' own way of putting the same words together."""
    from transformers import T5Tokenizer as Theirs

    pieces, charsmap = read_pieces()
    extra = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    made = Theirs(vocab=[*pieces, *extra], _spm_precompiled_charsmap=charsmap)
    return T5Tokenizer(made.backend_tokenizer, 1, 0)


@given(st.text(st.characters(codec="utf-8", exclude_characters="()[]\\", exclude_categories=["C"]), max_size=40))
@settings(max_examples=300)
def test_transformers_reads_the_same_words_the_same_way(theirs: T5Tokenizer, words: str) -> None:
    assert t5_tokenizer().tokenize(words, 64).ids == theirs.tokenize(words, 64).ids
