"""From names to a question that can be answered: which sides, which prompts, which pictures, whose eyes."""

from dataclasses import dataclass
from pathlib import Path

from safelight.errors import InvalidRequest
from safelight.lifecycle.promotion.audit import ImageTextEncoder
from safelight.lifecycle.promotion.compare import Comparison
from safelight.lifecycle.promotion.compared_model import ComparedModel, base_of, open_side
from safelight.lifecycle.promotion.prompt_set import questions_for, read_questions
from safelight.lifecycle.promotion.training_data import find_material, recipe_of
from safelight.models.checkpoints.catalogue import MINI
from safelight.models.checkpoints.digest import sums_of
from safelight.models.registry.registry import Registry
from safelight.models.vision.clip_similarity import open_clip
from safelight.models.vision.similarity import FOLDER, open_similarity
from safelight.studio import Studio

MINIS_EYES = "the image encoder of mini, which knows drawings of everyday things"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What may be said of a comparison."""

    data: str | None = None
    """Where the pictures are that the second side learnt from; None: where its recipe says."""
    held_out: str | None = None
    prompts: Path | None = None
    seeds: int = 4
    steps: int | None = None
    encoder: Path | None = None
    """The folder of a CLIP; None: the embedded model's own image encoder."""


def ask(
    before: str | None, after: str, options: CompareOptions, registry: Registry, studio: Studio
) -> tuple[Comparison, ImageTextEncoder]:
    """`before` None is what the other was made from.

    Raises:
        SafelightError: something that was named is not there, or says too little.
    """
    eyes = open_similarity() if options.encoder is None else open_clip(options.encoder)
    second = open_side(after, registry, studio)
    first = open_side(before, registry, studio) if before is not None else origin(second, registry, studio)
    recipe = recipe_of(second.version)
    about = studio.models.find(second.model).description
    material = find_material(recipe, about, data=options.data, held_out=options.held_out)
    if options.prompts is not None:
        questions = read_questions(options.prompts)
    else:
        questions = questions_for(recipe, [material.caption(one) for one in material.own] if material else [])
    asked = Comparison(
        before=first,
        after=second,
        questions=tuple(questions),
        seeds=options.seeds,
        steps=options.steps,
        material=material,
        eyes_name=MINIS_EYES if options.encoder is None else f"the CLIP in {options.encoder}",
        eyes_digest=" ".join(sums_of(sorted((options.encoder or MINI / FOLDER).glob("*.safetensors")))),
    )
    return asked, eyes


def origin(side: ComparedModel, registry: Registry, studio: Studio) -> ComparedModel:
    """What the side was before it was trained.

    Raises:
        InvalidRequest: nobody knows.
    """
    if side.version is None or (side.version.kind == "checkpoint" and not side.version.lineage.parents):
        raise InvalidRequest(f"what {side.name} was made from is not known; name what to hold it against")
    name = base_of(side.version) if side.version.kind == "checkpoint" else side.model
    return open_side(name, registry, studio)
