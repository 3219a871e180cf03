"""Does a model draw what it is asked for? Fixed prompts, fixed seeds, no picking, somebody else's eyes.

prompts.json -> pictures -> the judge's answers -> shares that are right
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from PIL import Image

from safelight.evaluation.judge import Judge

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Pictures for these prompts with these seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One row of the table."""

    name: str
    prompts: str
    """Which set of prompts is asked."""
    question: str
    """What the judge is asked: concept, style or colour."""
    top: int
    """The right answer is among so many likeliest ones."""
    target: float


MEASURES = (
    Measure(name="trained concepts, top-1", prompts="concepts", question="concept", top=1, target=0.85),
    Measure(name="trained concepts, top-5", prompts="concepts", question="concept", top=5, target=0.95),
    Measure(name="colour obeyed", prompts="colours", question="colour", top=1, target=0.90),
    Measure(name="style obeyed", prompts="styles", question="style", top=1, target=0.90),
    Measure(name="held-out combinations, top-1", prompts="held_out", question="concept", top=1, target=0.70),
    Measure(name="other phrasings, top-5", prompts="phrases", question="concept", top=5, target=0.80),
)
BATCH = 64


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: str
    right: frozenset[str]
    seed: int


@dataclass(frozen=True, slots=True)
class Score:
    measure: Measure
    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked


def read_prompts() -> dict[str, list[tuple[str, frozenset[str]]]]:
    """Prompts with their right answers, by set."""
    sets = json.loads(resources.files("safelight.evaluation").joinpath("prompts.json").read_text("utf-8"))
    return {name: [(prompt, frozenset(right.split())) for prompt, right in pairs] for name, pairs in sets.items()}


def asks(prompts: Sequence[tuple[str, frozenset[str]]], *, seeds: int, limit: int | None) -> list[Ask]:
    """Every prompt with each seed; with `limit`, so many prompts spread evenly over the list."""
    if limit and limit < len(prompts):
        prompts = [prompts[place * len(prompts) // limit] for place in range(limit)]
    return [Ask(prompt, right, seed) for prompt, right in prompts for seed in range(seeds)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One set of prompts, asked."""

    name: str
    asked: list[Ask]
    pictures: list[Image.Image]


def draw_sets(draw: Draw, *, seeds: int, limit: int | None, heard: Callable[[int, int], None]) -> Iterator[Drawn]:
    """The sets one after another; `heard` is told how many of all pictures there are."""
    sets = {name: asks(pairs, seeds=seeds, limit=limit) for name, pairs in read_prompts().items()}
    total, done = sum(len(each) for each in sets.values()), 0
    for name, asked in sets.items():
        pictures: list[Image.Image] = []
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            pictures += draw([ask.prompt for ask in part], [ask.seed for ask in part])
            done += len(part)
            heard(done, total)
        yield Drawn(name, asked, pictures)


def scores_of(drawn: Drawn, judge: Judge) -> list[Score]:
    """What the judge says of one set."""
    scores: list[Score] = []
    for measure in MEASURES:
        if measure.prompts == drawn.name:
            ranked = judge.rank(drawn.pictures, measure.question)
            right = sum(
                not ask.right.isdisjoint(order[: measure.top]) for ask, order in zip(drawn.asked, ranked, strict=True)
            )
            scores.append(Score(measure, right, len(drawn.asked)))
    return scores
