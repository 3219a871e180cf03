"""Compare two models: the same prompts, the same seeds, judged by an independent image encoder.

two models, prompts -> pictures -> metrics (lifecycle/evaluation/comparison.py) + audit -> Report

Each picture is saved as it is drawn, so an interrupted comparison resumes with the missing ones.
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
from safelight.lifecycle.promotion.audit import (
    Audit,
    EmbeddedPictures,
    ImageTextEncoder,
    Nearest,
    OnProgress,
    audit,
    embed,
    load_float32,
)
from safelight.lifecycle.promotion.compared_model import ComparedModel
from safelight.lifecycle.promotion.prompt_set import ComparisonPrompt
from safelight.lifecycle.promotion.training_data import ComparisonData, open_pictures, replace_new_word
from safelight.models.networks.load import Model
from safelight.studio import Studio

METHOD = 3
"""Version of the metrics: a report made by another version is measured again."""
MAX_PAIRS = 12
"""Pairs of a sample and its nearest training picture in a report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The two models, and how they are to be compared."""

    before: ComparedModel
    after: ComparedModel
    prompts: tuple[ComparisonPrompt, ...]
    seeds: int
    steps: int | None
    data: ComparisonData | None
    encoder_name: str
    encoder_digest: str

    def digest(self) -> str:
        """sha256 over all that the metrics depend on: the same comparison need not be measured twice."""
        prompts = [[prompt.prompt, prompt.neutral, prompt.judged_as] for prompt in self.prompts]
        digests = [self.before.digests, self.after.digests]
        rest = [self.seeds, self.steps, self.data.digest if self.data else "", self.encoder_digest, METHOD]
        return hashlib.sha256(json.dumps([digests, prompts, rest]).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    sample: Image.Image
    training: Image.Image
    nearest: Nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    comparison: Comparison
    numbers: dict[str, float]
    audit: Audit | None
    drawn: tuple[list[Image.Image], list[Image.Image]]
    """The pictures of `before` and of `after`: prompt by prompt, each with all seeds."""
    pairs: tuple[Pair, ...]
    """Samples beside their nearest training pictures: copies first, then by distance."""


def compare(
    comparison: Comparison, encoder: ImageTextEncoder, studio: Studio, *, folder: Path, on_progress: OnProgress
) -> ComparisonResult:
    """Draw with both models and measure; with `data`, audit the second. If both are the same, draw once.

    Args:
        folder: where this comparison, and no other, saves its pictures.

    Raises:
        SafelightError: a picture could not be drawn or saved.
    """

    def embedded(compared: ComparedModel, name: str) -> EmbeddedPictures:
        images = draw(compared, comparison, studio, folder=folder / name, on_progress=on_progress)
        return embed(images, encoder)

    after = embedded(comparison.after, "after")
    before = after if comparison.before == comparison.after else embedded(comparison.before, "before")
    shape = len(comparison.prompts), comparison.seeds, -1
    training = embed(open_pictures(comparison.data.training) if comparison.data else [], encoder)
    numbers = compare_pictures(
        before.vectors.view(shape),
        after.vectors.view(shape),
        neutral=tensor([prompt.neutral for prompt in comparison.prompts]),
        prompts=encoder.embed_prompts([prompt.judged_as for prompt in comparison.prompts]),
        judged=tensor([bool(prompt.judged_as) for prompt in comparison.prompts]),
        training=training.vectors if training.images else None,
    )
    audited, pairs = None, ()
    if comparison.data is not None:
        base = load_float32(comparison.after.model, comparison.after.model_digest, studio)
        samples = after.select(taught_indices(comparison))
        audited = audit(
            comparison.after,
            base,
            load_model_before(comparison, base, studio),
            samples,
            training,
            comparison.data,
            encoder,
            studio,
            on_progress=on_progress,
        )
        numbers |= audited.numbers
        pairs = nearest_pairs(audited, samples.images, training.images)
    drawn = before.images, after.images
    return ComparisonResult(comparison=comparison, numbers=numbers, audit=audited, drawn=drawn, pairs=pairs)


def nearest_pairs(audited: Audit, samples: Sequence[Image.Image], training: Sequence[Image.Image]) -> tuple[Pair, ...]:
    """All copies, and others up to `MAX_PAIRS`."""
    ordered = sorted(audited.nearest, key=lambda pair: (not pair.is_copy, pair.distance))
    shown = ordered[: max(MAX_PAIRS, len(audited.copies))]
    return tuple(Pair(sample=samples[pair.sample], training=training[pair.training], nearest=pair) for pair in shown)


def draw(
    compared: ComparedModel, comparison: Comparison, studio: Studio, *, folder: Path, on_progress: OnProgress
) -> list[Image.Image]:
    """Each prompt with seeds 0, 1, ..., prompt by prompt; pictures already in the folder are not drawn again."""
    prompts = [prompt_for(prompt.prompt, compared, comparison) for prompt in comparison.prompts]
    drafts = [
        compared.draft(prompt, seed=seed, steps=comparison.steps)
        for prompt in prompts
        for seed in range(comparison.seeds)
    ]
    images = {index: image for index in range(len(drafts)) if (image := load_picture(folder, index))}
    missing = [index for index in range(len(drafts)) if index not in images]

    def on_event(number: int, event: Event) -> None:
        match event:
            case Decoded(image=image):
                images[missing[number]] = image
                on_progress(f"drawing with {compared.name}", len(images), len(drafts))
            case Stored():  # the checks have let it through
                save_picture(folder, missing[number], images[missing[number]])
            case _:
                pass

    unwrapped(draw_all([drafts[index] for index in missing], studio, encoding=Encoding(), on_event=on_event))
    return [images[index] for index in range(len(drafts))]


def load_picture(folder: Path, index: int) -> Image.Image | None:
    try:
        with Image.open(folder / f"{index}.png") as image:
            return image.convert("RGB")
    except OSError:
        return None


def save_picture(folder: Path, index: int, image: Image.Image) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.partial", "png")
        (folder / f"{index}.partial").rename(folder / f"{index}.png")
    except OSError as error:
        raise StorageFailed(f"a picture could not be saved in {folder}: {error.strerror}") from None


def prompt_for(prompt: str, compared: ComparedModel, comparison: Comparison) -> str:
    """The prompt in words that the compared model knows."""
    recipe = comparison.data.recipe if comparison.data else None
    return prompt if compared.embedding_name else replace_new_word(prompt, recipe)


def taught_indices(comparison: Comparison) -> Sequence[int]:
    """Indices of the pictures whose prompts were taught; of all pictures if every prompt is neutral."""
    every = range(len(comparison.prompts) * comparison.seeds)
    return [index for index in every if not comparison.prompts[index // comparison.seeds].neutral] or every


def load_model_before(comparison: Comparison, base: Model, studio: Studio) -> Model | None:
    """The second model as it was before it was trained; None if that is not known."""
    version = comparison.after.version
    if version is None:
        return None
    if version.kind != "checkpoint":
        return base
    for parent in version.lineage.parents:
        with suppress(SafelightError):
            return load_float32(parent.name, studio.models.find(parent.name).digest, studio)
    return None
