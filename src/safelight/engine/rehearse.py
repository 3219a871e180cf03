"""Raises the errors that drawing would, before a spec is accepted: checks configurations, prompts, steps and masks.

`prepare.py` and `conditioning.py` make the same checks for a job with its networks in memory; here the same functions
check the outline of a model. They alone can find errors that need the weights.
"""

from collections.abc import Sequence
from itertools import chain

from PIL import Image

from safelight.diffusion.schedules import count_steps
from safelight.engine.conditioning import prompts_of, require_bounded
from safelight.engine.job import scaled_side
from safelight.engine.prepare import pace_for, require_mask_where_one_is_read, require_two_steps
from safelight.imaging.canvas import fit_to, inpaint_masks
from safelight.models.checkpoints.families import Description
from safelight.models.networks.components import Outline
from safelight.models.networks.encode import Prompt, check_depth
from safelight.models.networks.textual_inversion import Embedding
from safelight.spec import Denoised, Edit, HighresFix, ImageToImage, Inpaint, Refined, TextToImage, Variation


def rehearse(
    spec: Denoised,
    outline: Outline,
    *,
    embeddings: Sequence[Embedding] = (),
    further: Sequence[str] = (),
    refiner: Outline | None = None,
) -> None:
    """
    Args:
        further: the prompts of effects.

    Raises:
        InvalidRequest, UnsupportedOption: the spec cannot be drawn.
    """
    require_mask_where_one_is_read(spec, outline.description, name=outline.name)
    passes = passes_of(spec, outline.description)
    if isinstance(spec, Refined) and spec.refiner:
        require_two_steps(passes[-1])
    if not isinstance(spec, Variation):
        prompts = prompts_of(spec, outline.description, passes, embeddings, further=further, name=outline.name)
        require_legible(spec, outline, list(chain.from_iterable(prompts)))


def passes_of(spec: Denoised, about: Description) -> tuple[int, ...]:
    """The steps of each pass."""

    def count(steps: int, strength: float, size: tuple[int, int]) -> int:
        pace = pace_for(about, size)
        return count_steps(spec.sampler, about.scheduler, steps=steps, strength=strength, spacing=pace)

    size = spec.width, spec.height
    match spec:
        case TextToImage(highres=HighresFix() as highres):
            width, height = (scaled_side(side, highres.scale, about.side_step) for side in size)
            second = count(highres.steps or spec.steps, highres.strength, (width, height))
            return count(spec.steps, 1.0, size), second
        case ImageToImage() | Inpaint() | Edit():
            return (count(spec.steps, spec.strength, size),)
        case _:
            return (count(spec.steps, 1.0, size),)


def require_legible(spec: Denoised, outline: Outline, prompts: Sequence[Prompt]) -> None:
    """Raises InvalidRequest or UnsupportedOption if the prompts of any step are invalid."""
    check_depth([Prompt("", spec.clip_skip)], num_layers=outline.num_layers)
    require_bounded(dict.fromkeys(prompts), outline.tokenizer)


def require_white(spec: Inpaint, mask: Image.Image, size: tuple[int, int]) -> None:
    """Raises InvalidRequest if the mask leaves nothing to draw in a picture of that size."""
    mask = mask.convert("L")
    if mask.size != size:
        mask = fit_to(mask, *size, "stretch")
    inpaint_masks(mask if spec.only_masked else fit_to(mask, spec.width, spec.height, spec.fit), spec)
