"""Two models held against each other: the same prompts, the same seeds, and somebody else's eyes.

sides, questions -> pictures -> numbers (lifecycle/evaluation/comparison.py) + audit -> Report

Pictures are kept as they are drawn: what was interrupted goes on with those that are missing.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import tensor

from safelight.api import draw_all, unwrapped
from safelight.assets.encode import Encoding
from safelight.errors import SafelightError, StorageFailed
from safelight.events import Decoded, Event, Stored
from safelight.lifecycle.evaluation.comparison import compare_pictures
from safelight.lifecycle.promotion.audit import Audit, Heard, ImageTextEncoder, Nearest, audit, look_at, open_whole
from safelight.lifecycle.promotion.compared_model import ComparedModel
from safelight.lifecycle.promotion.prompt_set import ComparisonPrompt
from safelight.lifecycle.promotion.training_data import ComparisonData, in_known_words, pictures
from safelight.models.networks.load import Model
from safelight.studio import Studio

METHOD = 3
"""Of the numbers: what was measured by another is measured again."""
SHOWN = 12
"""Pairs of a sample and its nearest training picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is to be found out."""

    before: ComparedModel
    after: ComparedModel
    questions: tuple[ComparisonPrompt, ...]
    seeds: int
    steps: int | None
    material: ComparisonData | None
    eyes_name: str
    eyes_digest: str

    def digest(self) -> str:
        """sha256 over all that the numbers depend on: the same question need not be asked twice."""
        asked = [[one.prompt, one.neutral, one.judged_as] for one in self.questions]
        digests = [self.before.digests, self.after.digests]
        rest = [self.seeds, self.steps, self.material.digest if self.material else "", self.eyes_digest, METHOD]
        return hashlib.sha256(json.dumps([digests, asked, rest]).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    sample: Image.Image
    training: Image.Image
    nearest: Nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    asked: Comparison
    numbers: dict[str, float]
    audit: Audit | None
    drawn: tuple[list[Image.Image], list[Image.Image]]
    """Of the side before and the one after: each question with each seed, question by question."""
    pairs: tuple[Pair, ...]
    """Samples beside the training pictures that they are most like: copies first, then the nearest."""


def compare(asked: Comparison, eyes: ImageTextEncoder, studio: Studio, *, kept: Path, heard: Heard) -> ComparisonResult:
    """Draw with both and measure; with `material`, audit the second. Where the two are one, it is drawn once.

    Args:
        kept: a folder of this comparison alone, for its pictures.

    Raises:
        SafelightError: a picture could not be drawn, or not be kept.
    """
    after = look_at(draw(asked.after, asked, studio, kept=kept / "after", heard=heard), eyes)
    same = asked.before == asked.after
    before = after if same else look_at(draw(asked.before, asked, studio, kept=kept / "before", heard=heard), eyes)
    shape = len(asked.questions), asked.seeds, -1
    own = look_at(pictures(asked.material.own) if asked.material else [], eyes)
    numbers = compare_pictures(
        before.vectors.view(shape),
        after.vectors.view(shape),
        neutral=tensor([one.neutral for one in asked.questions]),
        prompts=eyes.embed_prompts([one.judged_as for one in asked.questions]),
        judged=tensor([bool(one.judged_as) for one in asked.questions]),
        training=own.vectors if own.images else None,
    )
    found, pairs = None, ()
    if asked.material is not None:
        base = open_whole(asked.after.model, asked.after.model_digest, studio)
        samples = after.among(learnt(asked))
        found = audit(
            asked.after,
            base,
            model_before(asked, base, studio),
            samples,
            own,
            asked.material,
            eyes,
            studio,
            heard=heard,
        )
        numbers |= found.numbers
        pairs = nearest_pairs(found, samples.images, own.images)
    return ComparisonResult(asked=asked, numbers=numbers, audit=found, drawn=(before.images, after.images), pairs=pairs)


def nearest_pairs(found: Audit, samples: Sequence[Image.Image], own: Sequence[Image.Image]) -> tuple[Pair, ...]:
    """All copies, and others up to `SHOWN`."""
    ordered = sorted(found.nearest, key=lambda one: (not one.is_copy, one.distance))
    shown = ordered[: max(SHOWN, len(found.copied))]
    return tuple(Pair(sample=samples[one.sample], training=own[one.training], nearest=one) for one in shown)


def draw(side: ComparedModel, asked: Comparison, studio: Studio, *, kept: Path, heard: Heard) -> list[Image.Image]:
    """Each question with seeds 0, 1, ..., question by question; those that are kept are not drawn again."""
    said = [spoken(question.prompt, side, asked) for question in asked.questions]
    drafts = [side.draft(prompt, seed=seed, steps=asked.steps) for prompt in said for seed in range(asked.seeds)]
    found = {place: image for place in range(len(drafts)) if (image := kept_picture(kept, place))}
    missing = [place for place in range(len(drafts)) if place not in found]

    def on_event(number: int, event: Event) -> None:
        match event:
            case Decoded(image=image):
                found[missing[number]] = image
                heard(f"drawing with {side.name}", len(found), len(drafts))
            case Stored():  # what the checks let through
                keep_picture(kept, missing[number], found[missing[number]])
            case _:
                pass

    unwrapped(draw_all([drafts[place] for place in missing], studio, encoding=Encoding(), on_event=on_event))
    return [found[place] for place in range(len(drafts))]


def kept_picture(folder: Path, place: int) -> Image.Image | None:
    try:
        with Image.open(folder / f"{place}.png") as image:
            return image.convert("RGB")
    except OSError:
        return None


def keep_picture(folder: Path, place: int, image: Image.Image) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{place}.partial", "png")
        (folder / f"{place}.partial").rename(folder / f"{place}.png")
    except OSError as error:
        raise StorageFailed(f"a picture could not be kept in {folder}: {error.strerror}") from None


def spoken(prompt: str, side: ComparedModel, asked: Comparison) -> str:
    """The prompt, as the side can read it."""
    recipe = asked.material.recipe if asked.material else None
    return prompt if side.word else in_known_words(prompt, recipe)


def learnt(asked: Comparison) -> Sequence[int]:
    """The places of the pictures of what was learnt; all of them where every prompt is neutral."""
    every = range(len(asked.questions) * asked.seeds)
    return [place for place in every if not asked.questions[place // asked.seeds].neutral] or every


def model_before(asked: Comparison, base: Model, studio: Studio) -> Model | None:
    """What the second side was before it was trained; None where that is not known."""
    version = asked.after.version
    if version is None:
        return None
    if version.kind != "checkpoint":
        return base
    for parent in version.lineage.parents:
        with suppress(SafelightError):
            return open_whole(parent.name, studio.models.find(parent.name).digest, studio)
    return None
