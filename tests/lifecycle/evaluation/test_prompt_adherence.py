"""The prompts of the evaluation, and the scores from the judge's answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from safelight.lifecycle.evaluation.prompt_adherence import (
    MEASURES,
    DrawnSet,
    Right,
    asks,
    draw_sets,
    read_prompts,
    scores_of,
)

FLAT_APPLE = {"concept": frozenset({"apple"}), "style": frozenset({"flat"})}
RED_FLAT_APPLE = FLAT_APPLE | {"colour": frozenset({"red"})}


@dataclass
class Reader:
    """A judge that finds its answers written on the pictures, at a place of its choice."""

    place: int

    def rank(self, images: Sequence[Image.Image], question: str) -> list[list[str]]:
        return [["nothing"] * self.place + [image.info["shows"].get(question, "anything")] for image in images]


def test_the_number_of_prompts_is_as_documented() -> None:
    prompts = read_prompts()
    assert len(prompts["concepts"]) >= 200
    assert len(prompts["phrases"]) >= 60
    assert {measure.prompts for measure in MEASURES} == set(prompts)
    for pairs in prompts.values():
        assert len({prompt for prompt, _ in pairs}) == len(pairs)
        assert all(right for _, right in pairs)


def test_every_prompt_is_drawn_with_every_seed() -> None:
    asked = asks([("a", {"style": frozenset("x")}), ("b", {"style": frozenset("y")})], seeds=3, limit=None)
    assert [(ask.prompt, ask.seed) for ask in asked] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]


def test_a_limit_spreads_over_the_list() -> None:
    prompts = [(str(n), {"style": frozenset("x")}) for n in range(10)]
    assert [ask.prompt for ask in asks(prompts, seeds=1, limit=4)] == ["0", "2", "5", "7"]


@pytest.mark.parametrize(("place", "top1", "top5"), [(0, 1.0, 1.0), (3, 0.0, 1.0), (5, 0.0, 0.0)])
def test_scores_follow_the_rank_of_the_right_answer(place: int, top1: float, top5: float) -> None:
    right = {
        prompt: {name: min(words) for name, words in answers.items()}
        for pairs in read_prompts().values()
        for prompt, answers in pairs
    }
    drawn: list[tuple[int, int]] = []

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        images = [Image.new("RGB", (64, 64)) for _ in prompts]
        for image, prompt in zip(images, prompts, strict=True):
            image.info["shows"] = right[prompt]
        return images

    judge: Any = Reader(place)
    sets = draw_sets(draw, seeds=1, limit=3, heard=lambda done, total: drawn.append((done, total)))
    scores = [score for each in sets for score in scores_of(each, judge)]
    assert [score.measure for score in scores] == list(MEASURES)
    assert [score.share for score in scores] == [top1 if score.measure.top == 1 else top5 for score in scores]
    assert drawn[-1] == (15, 15)


@pytest.mark.parametrize(
    ("right", "style", "colour", "shares"),
    [
        (RED_FLAT_APPLE, "flat", "red", [1, 1]),
        (RED_FLAT_APPLE, "noto", "red", [1, 0]),
        (RED_FLAT_APPLE, "flat", "blue", [1, 0]),
        (FLAT_APPLE, "flat", "blue", [1, 1]),
    ],
)
def test_a_combination_is_right_if_all_its_parts_are(
    right: Right, style: str, colour: str, shares: list[int]
) -> None:
    picture = Image.new("RGB", (64, 64))
    picture.info["shows"] = {"concept": "apple", "style": style, "colour": colour}
    judge: Any = Reader(0)
    drawn = DrawnSet("held_out", asks([("as it was asked", right)], seeds=1, limit=None), [picture])
    assert [score.share for score in scores_of(drawn, judge)] == shares
