"""The image sizes a model draws well, and highres settings for larger images.

A network composes images of about the area it was trained on. Observed with `mini`, whose native size is 128x128: at
1.17 times the area (184x104) an apple and a house are intact; at 1.27 times (144x144) the apple has corners and the
house melts; at 4 times they are a square and a wall, and from 9 times on little is left of them. Stable Diffusion
draws second heads there. A first pass at the native area, upscaled and redrawn at a strength of 0.4 (`with_highres`),
preserved the shapes at 16 and at 64 times the area; at strength 0.6 they were lost at 4 times.
"""

from math import sqrt

from safelight.errors import UnsupportedOption
from safelight.models.checkpoints.families import SIDE_STEP, Description
from safelight.spec import Denoised, Draft, HighresFix, ImageToImage

GOOD_AREA = 1.25
"""Up to this multiple of its native area, a model draws about as well as at that area."""
PROPORTIONS = (1.0, 3 / 2, 2 / 3, 16 / 9, 9 / 16)
STRENGTH = 0.4
MIN_STEPS = 3
"""At that strength, one of these steps is run."""
MAX_SCALE = 8.0
"""Equal to the limit of `spec.Scale`."""


def good_sizes(description: Description) -> list[str]:
    """Return sizes as `WIDTHxHEIGHT`, in the most common aspect ratios."""
    if description.defaults.width != description.defaults.height:
        return [f"{description.defaults.width}x{description.defaults.height}"]
    area, step = own_area(description), description.side_step
    return ["{}x{}".format(*same_area(proportion, area, step)) for proportion in PROPORTIONS]


def own_area(description: Description) -> int:
    return description.defaults.width * description.defaults.height


def require_area(description: Description, spec: Denoised, *, max_native_areas: float) -> None:
    """
    Raises:
        UnsupportedOption: one network call would cover more than `max_native_areas` times the model's native area.
    """
    width, height = spec.width, spec.height
    if isinstance(spec, ImageToImage) and spec.tiles is not None:
        width = height = spec.tiles.side or description.defaults.width
    times = width * height / own_area(description)
    if times > max_native_areas:
        raise UnsupportedOption(
            "size",
            f"{width}x{height} is {times:.3g} times the area that {spec.model} was made for; at most "
            f"{max_native_areas:g} times are drawn in one pass. It draws {', '.join(good_sizes(description))} well; "
            "larger pictures need highres, upscaling, or tiles over an init picture",
        )


def size_warning(draft: Draft, description: Description) -> str | None:
    """Return a warning if the model does not draw this size well, though it is allowed; else None."""
    fixed = with_highres(draft, description)
    if fixed is draft:
        return None
    assert fixed.highres is not None
    first = f"--width {fixed.width} --height {fixed.height}"
    return (
        f"{draft.model} draws {', '.join(good_sizes(description))} well; at other sizes shapes are "
        f"distorted. {first} --highres {fixed.highres.scale:.4g} --highres-strength {STRENGTH:g} avoids this"
    )


def with_highres(draft: Draft, description: Description, *, above: float = GOOD_AREA) -> Draft:
    """Return a draft that starts at about the model's native area and is upscaled to the requested size.

    The draft itself is returned if the size is at most `above` times that area, or if it starts from an image.
    """
    width, height = draft.width or description.defaults.width, draft.height or description.defaults.height
    plain = draft.highres is None and draft.init is None and description.reads == "words"
    if not plain or width * height <= above * own_area(description):
        return draft
    first = first_pass(width, height, own_area(description), description.side_step)
    if first is None:
        return draft
    steps = draft.steps or description.defaults.steps
    more = MIN_STEPS if steps < MIN_STEPS else None
    highres = HighresFix(scale=width / first[0], strength=STRENGTH, steps=more)
    return draft.model_copy(update={"width": first[0], "height": first[1], "highres": highres})


def first_pass(width: int, height: int, area: int, step: int) -> tuple[int, int] | None:
    """Return the size nearest to an area from which one scale factor gives exactly this size; None if there is none."""
    if width % step or height % step:
        return None
    wanted = width / min(MAX_SCALE, sqrt(width * height / area))
    for across in sorted(range(step, width, step), key=lambda side: abs(side - wanted)):
        down = rounded(height * across / width, step)
        scale = width / across
        if across >= 64 and 1 < scale <= MAX_SCALE and abs(down * scale - height) < SIDE_STEP / 2:
            return across, down
    return None


def same_area(proportion: float, area: float, step: int) -> tuple[int, int]:
    """Return width and height with about that many pixels, for a ratio of width to height."""
    height = sqrt(area / proportion)
    return rounded(height * proportion, step), rounded(height, step)


def rounded(side: float, step: int) -> int:
    """Return the nearest side length that a spec allows."""
    return min(max(64, round(side / step) * step), 4096)
