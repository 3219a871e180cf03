"""What a version was trained on, and pictures of the same kind that it never saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from safelight.errors import InvalidRequest
from safelight.imaging.open_image import open_image
from safelight.lifecycle.training.check import MAX_BYTES, MAX_PIXELS, check
from safelight.lifecycle.training.dataset import Ready, hold_out, make_ready
from safelight.lifecycle.training.recipe import AnyRecipe, DreamBoothRecipe, EmbeddingRecipe, LoraRecipe, parse_recipe
from safelight.lifecycle.training.sources import find_examples
from safelight.models.checkpoints.families import Description
from safelight.models.registry.version import Version
from safelight.models.vision.similarity import opaque


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonData:
    own: tuple[Ready, ...]
    held: tuple[Ready, ...]
    """Empty where none were kept aside."""
    digest: str
    recipe: AnyRecipe

    def caption(self, ready: Ready) -> str:
        """What was said of it in training."""
        match self.recipe:
            case DreamBoothRecipe(prompt=prompt):
                return prompt
            case EmbeddingRecipe(name=name, use_captions=False):
                return f"a photo of a {name}"
            case _:
                return ready.example.caption or ""


def in_known_words(text: str, recipe: AnyRecipe | None) -> str:
    """Without a new word that the model before has never heard: what the word began with stands in for it."""
    if not isinstance(recipe, EmbeddingRecipe):
        return text
    return text.replace(recipe.name, "thing" if recipe.init == "*" else recipe.init)


def recipe_of(version: Version | None) -> AnyRecipe | None:
    """How it was trained, if safelight trained it and says so."""
    said = version.lineage.recipe if version is not None else {}
    if not said:
        return None
    try:
        return parse_recipe(said)
    except InvalidRequest:  # of another version of safelight
        return None


def find_material(
    recipe: AnyRecipe | None, about: Description, *, data: str | None, held_out: str | None
) -> ComparisonData | None:
    """The pictures of the recipe's run, or of `data`; None where nobody knows which these were, or the run's are gone.

    Those that the run kept aside are its held-out ones, with those of `held_out`.

    Raises:
        InvalidRequest: there is nothing, or nothing can be read.
    """
    where = data or (recipe.data if recipe is not None and is_there(recipe.data) else None)
    if where is None:
        return None
    if recipe is None:
        recipe = LoraRecipe(name="unknown", data=where)
    own, digest = read(where, about, recipe)
    learnt, kept = hold_out(own, recipe.holdout, recipe.seed)
    if held_out is not None:
        others, more = read(held_out, about, recipe)
        kept, digest = [*kept, *others], f"{digest} {more}"
    return ComparisonData(own=tuple(learnt), held=tuple(kept), digest=digest, recipe=recipe)


def read(where: str, about: Description, recipe: AnyRecipe) -> tuple[list[Ready], str]:
    report = check(find_examples(where), data=where, min_side=8, needs_captions=False, needs_masks=False)
    if not report.good:
        raise InvalidRequest(f"{where} holds no picture that can be opened")
    return make_ready(report.good, about, recipe), report.digest


def pictures(ready: Sequence[Ready]) -> list[Image.Image]:
    """As they were learnt from: over white, cut to their buckets."""
    return [
        one.cut.apply(
            opaque(open_image(one.example.read(), max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES, mode="RGBA"))
        )
        for one in ready
    ]


def is_there(data: str) -> bool:
    """What lies behind a URL is taken to be."""
    return "://" in data or Path(data).exists()
