"""Set up a comparison from names: the two models, their prompts, the training pictures, and the image encoder."""

from dataclasses import dataclass
from pathlib import Path

from safelight.errors import InvalidRequest
from safelight.lifecycle.promotion.audit import ImageTextEncoder
from safelight.lifecycle.promotion.compare import Comparison
from safelight.lifecycle.promotion.compared_model import ComparedModel, base_of, open_compared_model
from safelight.lifecycle.promotion.prompt_set import prompts_for, read_prompt_file
from safelight.lifecycle.promotion.training_data import find_comparison_data, recipe_of
from safelight.models.checkpoints.catalogue import MINI
from safelight.models.checkpoints.digest import sums_of
from safelight.models.registry.registry import Registry
from safelight.models.vision.clip_similarity import open_clip
from safelight.models.vision.similarity import FOLDER, open_similarity
from safelight.studio import Studio

MINI_ENCODER = "the image encoder of mini, which knows drawings of everyday things"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """Options of a comparison."""

    data: str | None = None
    """Location of the second model's training pictures; None: as in its recipe."""
    held_out: str | None = None
    prompts: Path | None = None
    seeds: int = 4
    steps: int | None = None
    encoder: Path | None = None
    """The folder of a CLIP; None: the embedded model's own image encoder."""


def open_comparison(
    before: str | None, after: str, options: CompareOptions, registry: Registry, studio: Studio
) -> tuple[Comparison, ImageTextEncoder]:
    """Find everything that a comparison needs. With `before` None, compare with the model that `after` was made from.

    Raises:
        SafelightError: something named does not exist, or is not described completely.
    """
    encoder = open_similarity() if options.encoder is None else open_clip(options.encoder)
    second = open_compared_model(after, registry, studio)
    first = open_compared_model(before, registry, studio) if before is not None else origin_of(second, registry, studio)
    recipe = recipe_of(second.version)
    description = studio.models.find(second.model).description
    data = find_comparison_data(recipe, description, location=options.data, held_out=options.held_out)
    if options.prompts is not None:
        prompts = read_prompt_file(options.prompts)
    else:
        prompts = prompts_for(recipe, [data.caption(picture) for picture in data.training] if data else [])
    comparison = Comparison(
        before=first,
        after=second,
        prompts=tuple(prompts),
        seeds=options.seeds,
        steps=options.steps,
        data=data,
        encoder_name=MINI_ENCODER if options.encoder is None else f"the CLIP in {options.encoder}",
        encoder_digest=" ".join(sums_of(sorted((options.encoder or MINI / FOLDER).glob("*.safetensors")))),
    )
    return comparison, encoder


def origin_of(trained: ComparedModel, registry: Registry, studio: Studio) -> ComparedModel:
    """The model before it was trained.

    Raises:
        InvalidRequest: the registry does not know it.
    """
    if trained.version is None or (trained.version.kind == "checkpoint" and not trained.version.lineage.parents):
        raise InvalidRequest(
            f"the origin of {trained.name} is not known: the registry does not say which model it was made from; name "
            "the model to compare it with"
        )
    name = base_of(trained.version) if trained.version.kind == "checkpoint" else trained.model
    return open_compared_model(name, registry, studio)
