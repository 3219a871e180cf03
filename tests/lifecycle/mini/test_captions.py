"""Captions: what is said of a picture is true, and sometimes nothing is said."""

import random

from hypothesis import given
from hypothesis import strategies as st

from safelight.lifecycle.mini.captions import (
    STYLE_WORDS,
    Aliases,
    Subject,
    caption,
    caption_pair,
    names_of,
    read_aliases,
    without_colours,
)
from safelight.lifecycle.mini.mini import CaptionRecipe

APPLE = Subject(
    names=["apple", "red apple"],
    keywords=["fruit", "health"],
    style="flat",
    colour="blue",
    own_colour=False,
    background="pink",
)


@given(st.integers(0, 10**6))
def test_a_recoloured_thing_is_never_called_by_its_old_colour(seed: int) -> None:
    assert "red" not in caption(APPLE, CaptionRecipe(copy_colour=1), random.Random(seed)).split()


@given(st.integers(0, 10**6))
def test_only_the_pictures_own_style_is_named(seed: int) -> None:
    words = caption(APPLE, CaptionRecipe(style=1, empty=0), random.Random(seed))
    assert any(style in words for style in STYLE_WORDS["flat"])
    assert not any(style in words for other in ("noto", "glossy") for style in STYLE_WORDS[other])


@given(st.integers(0, 10**6), st.booleans())
def test_a_caption_has_a_twin_without_its_style(seed: int, named: bool) -> None:
    said, bare = caption_pair(APPLE, CaptionRecipe(style=float(named)), random.Random(seed))
    assert not any(style in bare for style in STYLE_WORDS["flat"])
    words = iter(said.replace(",", "").split())
    assert all(word in words for word in bare.replace(",", "").split())
    assert (said == bare) is (said == "" or not named)


def test_one_caption_in_ten_is_empty() -> None:
    draw = random.Random(0)
    empty = sum(caption(APPLE, CaptionRecipe(), draw) == "" for _ in range(4000))
    assert abs(empty / 4000 - 0.1) < 0.02  # four standard deviations


def test_a_word_that_an_alias_claims_belongs_to_that_concept_alone() -> None:
    aliases = Aliases({"dog face": ("dog", "puppy"), "dog": ("whole dog",)}, frozenset({"dog face"}))
    assert names_of("dog face", aliases) == ("dog", "puppy", "dog face")
    assert names_of("dog", aliases) == ("whole dog",)
    assert names_of("zebra", aliases) == ("zebra",)


def test_no_two_concepts_share_an_alias() -> None:
    aliases = read_aliases()
    words = [word for names in aliases.names.values() for word in names]
    assert sorted(words) == sorted(set(words))
    assert len(aliases.core) >= 200


def test_a_leading_colour_is_dropped_but_a_colour_alone_is_kept() -> None:
    assert without_colours("red apple") == "apple"
    assert without_colours("orange") == "orange"
