"""The training pictures of a version, and held-out pictures of the same kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from safelight.errors import InvalidRequest
from safelight.imaging.open_image import open_image
from safelight.lifecycle.training.check import MAX_BYTES, MAX_PIXELS, check
from safelight.lifecycle.training.dataset import TrainingPicture, assign_buckets, hold_out
from safelight.lifecycle.training.recipe import AnyRecipe, DreamBoothRecipe, EmbeddingRecipe, LoraRecipe, parse_recipe
from safelight.lifecycle.training.sources import find_examples
from safelight.models.checkpoints.families import Description
from safelight.models.registry.version import Version
from safelight.models.vision.similarity import opaque


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonData:
    training: tuple[TrainingPicture, ...]
    held_out: tuple[TrainingPicture, ...]
    """Empty if none were held out."""
    digest: str
    recipe: AnyRecipe

    def caption(self, ready: TrainingPicture) -> str:
        """The caption that a picture was trained with."""
        match self.recipe:
            case DreamBoothRecipe(prompt=prompt):
                return prompt
            case EmbeddingRecipe(name=name, use_captions=False):
                return f"a photo of a {name}"
            case _:
                return ready.example.caption or ""


def replace_new_word(text: str, recipe: AnyRecipe | None) -> str:
    """Replace an embedding's new word, which the untrained model does not know, by the word it was initialised from."""
    if not isinstance(recipe, EmbeddingRecipe):
        return text
    return text.replace(recipe.name, "thing" if recipe.init == "*" else recipe.init)


def recipe_of(version: Version | None) -> AnyRecipe | None:
    """The recipe that a version was trained with, if safelight recorded one that it can read."""
    fields = version.lineage.recipe if version is not None else {}
    if not fields:
        return None
    try:
        return parse_recipe(fields)
    except InvalidRequest:  # written by another version of safelight
        return None


def find_comparison_data(
    recipe: AnyRecipe | None, description: Description, *, location: str | None, held_out: str | None
) -> ComparisonData | None:
    """The pictures at `location`, else those of the recipe; None if neither is known, or the recipe's are gone.

    Held out are those that the run held out, and those at `held_out`.

    Raises:
        InvalidRequest: no picture there can be opened.
    """
    location = location or (recipe.data if recipe is not None and may_exist(recipe.data) else None)
    if location is None:
        return None
    if recipe is None:
        recipe = LoraRecipe(name="unknown", data=location)
    pictures, digest = read_pictures(location, description, recipe)
    training, kept_aside = hold_out(pictures, recipe.holdout, recipe.seed)
    if held_out is not None:
        others, other_digest = read_pictures(held_out, description, recipe)
        kept_aside, digest = [*kept_aside, *others], f"{digest} {other_digest}"
    return ComparisonData(training=tuple(training), held_out=tuple(kept_aside), digest=digest, recipe=recipe)


def read_pictures(location: str, description: Description, recipe: AnyRecipe) -> tuple[list[TrainingPicture], str]:
    """The pictures at a location, cut to their buckets, and the digest of them all."""
    report = check(find_examples(location), data=location, min_side=8, needs_captions=False, needs_masks=False)
    if not report.good:
        raise InvalidRequest(f"{location} has no picture that can be opened")
    return assign_buckets(report.good, description, recipe), report.digest


def open_pictures(ready: Sequence[TrainingPicture]) -> list[Image.Image]:
    """The pictures as the network was trained on them: over white, cut to their buckets."""
    return [
        picture.crop.apply(
            opaque(open_image(picture.example.read(), max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES, mode="RGBA"))
        )
        for picture in ready
    ]


def may_exist(data: str) -> bool:
    """Whether the path exists; a URL is assumed to."""
    return "://" in data or Path(data).exists()
