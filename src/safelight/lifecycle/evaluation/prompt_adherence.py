"""Does a model draw what its prompts ask for? Fixed prompts, fixed seeds, no selection, an independent judge.

prompts.json -> pictures -> the judge's answers -> shares of right answers
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
"""The right answers by question: concept, style, colour. A question that is left out accepts any answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One row of the table."""

    name: str
    prompts: str
    """Name of the set of prompts."""
    questions: tuple[str, ...]
    """The judge's questions, all of which must be answered right: concept, style, colour."""
    top: int
    """A right answer must be among this many most probable ones."""
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
        """Whether the answers include a right one to every question that the prompt determines."""
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


def judged_prompts(prompts: Sequence[tuple[str, Right]], *, seeds: int, limit: int | None) -> list[JudgedPrompt]:
    """Every prompt with each seed; with `limit`, that many prompts spread evenly over the list."""
    if limit and limit < len(prompts):
        prompts = [prompts[number * len(prompts) // limit] for number in range(limit)]
    return [JudgedPrompt(prompt, right, seed) for prompt, right in prompts for seed in range(seeds)]


@dataclass(frozen=True, slots=True)
class DrawnSet:
    """One set of prompts with its pictures."""

    name: str
    prompts: list[JudgedPrompt]
    pictures: list[Image.Image]


def draw_sets(
    draw: Draw, *, seeds: int, limit: int | None, on_progress: Callable[[int, int], None]
) -> Iterator[DrawnSet]:
    """Draw the sets one after another; `on_progress` is called with the number of pictures drawn and their total."""
    sets = {name: judged_prompts(pairs, seeds=seeds, limit=limit) for name, pairs in read_prompts().items()}
    total, done = sum(len(each) for each in sets.values()), 0
    for name, prompts in sets.items():
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            pictures += draw([judged.prompt for judged in part], [judged.seed for judged in part])
            done += len(part)
            on_progress(done, total)
        yield DrawnSet(name, prompts, pictures)


def scores_of(drawn: DrawnSet, judge: Judge) -> list[Score]:
    """The scores of one set by the judge's answers."""
    measures = [measure for measure in MEASURES if measure.prompts == drawn.name]
    questions = {name for measure in measures for name in measure.questions}
    ranked = {name: judge.rank(drawn.pictures, name) for name in questions}
    return [
        Score(
            measure,
            sum(
                judged.answered({name: ranked[name][number][: measure.top] for name in measure.questions})
                for number, judged in enumerate(drawn.prompts)
            ),
            len(drawn.prompts),
        )
        for measure in measures
    ]
