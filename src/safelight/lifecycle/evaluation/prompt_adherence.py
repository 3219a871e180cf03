"""Does a model draw what it is asked for? Fixed prompts, fixed seeds, no picking, somebody else's eyes.

prompts.json -> pictures -> the judge's answers -> shares that are right
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from PIL import Image

from safelight.lifecycle.evaluation.judge import Judge

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Pictures for these prompts with these seeds."""
Right = Mapping[str, frozenset[str]]
"""The right answers by question: concept, style, colour. What is not asked for may be anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One row of the table."""

    name: str
    prompts: str
    """Which set of prompts is asked."""
    questions: tuple[str, ...]
    """What the judge is asked, and all of it must be right: concept, style, colour."""
    top: int
    """A right answer is among so many likeliest ones."""
    target: float


MEASURES = (
    Measure(name="trained concepts, top-1", prompts="concepts", questions=("concept",), top=1, target=0.85),
    Measure(name="trained concepts, top-5", prompts="concepts", questions=("concept",), top=5, target=0.95),
    Measure(name="colour obeyed", prompts="colours", questions=("colour",), top=1, target=0.90),
    Measure(name="style obeyed", prompts="styles", questions=("style",), top=1, target=0.90),
    Measure(name="held-out combinations, top-1", prompts="held_out", questions=("concept",), top=1, target=0.70),
    Measure(
        name="held-out combinations, as a whole",
        prompts="held_out",
        questions=("concept", "style", "colour"),
        top=1,
        target=0.70,
    ),
    Measure(name="other phrasings, top-5", prompts="phrases", questions=("concept",), top=5, target=0.80),
)
BATCH = 64


@dataclass(frozen=True, slots=True)
class JudgedPrompt:
    prompt: str
    right: Right
    seed: int

    def answered(self, answers: Mapping[str, Sequence[str]]) -> bool:
        """Whether among these answers by question there is a right one to each that matters here."""
        return all(not self.right[name].isdisjoint(given) for name, given in answers.items() if name in self.right)


@dataclass(frozen=True, slots=True)
class Score:
    measure: Measure
    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked


def read_prompts() -> dict[str, list[tuple[str, Right]]]:
    """Prompts with their right answers, by set."""
    sets = json.loads(resources.files("safelight.lifecycle.evaluation").joinpath("prompts.json").read_text("utf-8"))
    return {
        name: [(prompt, {each: frozenset(words.split()) for each, words in right.items()}) for prompt, right in pairs]
        for name, pairs in sets.items()
    }


def asks(prompts: Sequence[tuple[str, Right]], *, seeds: int, limit: int | None) -> list[JudgedPrompt]:
    """Every prompt with each seed; with `limit`, so many prompts spread evenly over the list."""
    if limit and limit < len(prompts):
        prompts = [prompts[place * len(prompts) // limit] for place in range(limit)]
    return [JudgedPrompt(prompt, right, seed) for prompt, right in prompts for seed in range(seeds)]


@dataclass(frozen=True, slots=True)
class DrawnSet:
    """One set of prompts, asked."""

    name: str
    asked: list[JudgedPrompt]
    pictures: list[Image.Image]


def draw_sets(draw: Draw, *, seeds: int, limit: int | None, heard: Callable[[int, int], None]) -> Iterator[DrawnSet]:
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
        yield DrawnSet(name, asked, pictures)


def scores_of(drawn: DrawnSet, judge: Judge) -> list[Score]:
    """What the judge says of one set."""
    measures = [measure for measure in MEASURES if measure.prompts == drawn.name]
    questions = {name for measure in measures for name in measure.questions}
    ranked = {name: judge.rank(drawn.pictures, name) for name in questions}
    return [
        Score(
            measure,
            sum(
                ask.answered({name: ranked[name][place][: measure.top] for name in measure.questions})
                for place, ask in enumerate(drawn.asked)
            ),
            len(drawn.asked),
        )
        for measure in measures
    ]
