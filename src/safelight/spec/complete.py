"""From a draft and a model's defaults to a spec."""

import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from safelight.errors import UnsupportedOption
from safelight.spec.draft import Draft
from safelight.spec.fields import (
    NUM_SEEDS,
    ClipSkip,
    Fraction,
    Frozen,
    Guidance,
    ImageGuidance,
    Reads,
    Side,
    Steps,
    Strength,
)
from safelight.spec.parts import PartName, PinnedEmbedding, PinnedPart, PinnedPlugin, PinnedRefiner
from safelight.spec.tasks import Denoised, Edit, ImageToImage, Inpaint, TextToImage, Variation


class Defaults(Frozen):
    """What a model draws best with, where the caller does not choose."""

    width: Side
    height: Side
    sampler: str = "DPM++ 2M Karras"
    steps: Steps = 25
    guidance: Guidance = 7.0
    guidance_rescale: Fraction = 0.0
    clip_skip: ClipSkip = 1
    strength: Strength = 0.75
    image_guidance: ImageGuidance = 1.5


def complete(
    draft: Draft,
    defaults: Defaults,
    *,
    model_digest: str,
    embeddings: tuple[PinnedEmbedding, ...] = (),
    parts: Mapping[PartName, PinnedPart] | None = None,
    refiner: PinnedRefiner | None = None,
    plugins: tuple[PinnedPlugin, ...] = (),
    random_seed: int | None = None,
    reads: Reads = "words",
) -> Denoised:
    """Fill in what the caller left open; an init picture makes it image-to-image, a mask inpainting.

    Raises:
        UnsupportedOption: what a model that reads instructions or pictures cannot be asked for.
    """
    if draft.extend is not None or draft.replace_background:
        raise ValueError("the canvas must be drawn into init and mask first")
    require_readable(draft, reads)
    elsewhere = {"extend", "highres", "replace_background", "scale", "tiles", "refiner", "refiner_switch"}
    chosen = draft.model_dump(exclude_none=True, exclude=elsewhere)
    filled = defaults.model_dump() | {"seed": choose_seed() if random_seed is None else random_seed} | chosen
    filled |= {"model_digest": model_digest, "embeddings": embeddings, "refiner": refiner, "plugins": plugins}
    filled |= dict(parts or {})
    if reads == "instructions":
        return Edit(**only_fields(Edit, filled | {"strength": draft.strength or 1.0}))
    if reads == "picture":
        return Variation(**only_fields(Variation, filled))
    if draft.init is None:
        return TextToImage(**only_fields(TextToImage, filled), highres=draft.highres)
    if draft.mask is not None:
        return Inpaint(**only_fields(Inpaint, filled))
    tiles = draft.tiles
    if tiles is not None and tiles.side is None:
        tiles = tiles.model_copy(update={"side": min(defaults.width, defaults.height)})
    return ImageToImage(**only_fields(ImageToImage, filled), tiles=tiles)


PICTURE_UNREAD = ("refiner", "mask", "tiles", "strength", "image_guidance", "prompt", "negative_prompt")


def require_readable(draft: Draft, reads: Reads) -> None:
    """Whether a model that is told this can be asked for that."""
    if reads == "words":
        if draft.image_guidance is not None:
            raise UnsupportedOption("image_guidance", f"{draft.model} follows no instructions; leave it out")
        return
    does = {
        "instructions": "changes a picture as the prompt says",
        "picture": "draws variations of a picture",
    }[reads]
    if draft.init is None:
        raise UnsupportedOption("model", f"{draft.model} {does}: give it an init picture")
    unread = {"instructions": ("refiner", "mask", "tiles"), "picture": PICTURE_UNREAD}
    for name in unread[reads]:
        if getattr(draft, name):
            raise UnsupportedOption(name, f"{draft.model} {does}; leave it out")


def only_fields(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in kind.model_fields}


def choose_seed() -> int:
    return secrets.randbelow(NUM_SEEDS)


def seeds_from(first: int, n: int) -> list[int]:
    """`n` seeds that follow each other; after the largest comes 0."""
    return [(first + i) % NUM_SEEDS for i in range(n)]
