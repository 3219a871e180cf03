"""Which sizes a model draws well, and what becomes of a wish for a larger picture.

A network lays out what it was trained on, pictures of about its own area. Looked at with `mini`, whose own size is
128x128: at 1.17 times the area (184x104) an apple and a house are whole; at 1.27 times (144x144) the one has corners
and the other melts; at 4 times they are a square and a wall, and from 9 times on little is left of them. Stable
Diffusion draws second heads there. A first pass at the model's own area, enlarged and drawn over at a strength of 0.4
(`by_highres`), kept their shapes at 16 and at 64 times the area; at 0.6 it lost them at 4.
"""

from math import sqrt

from safelight.errors import UnsupportedOption
from safelight.models.checkpoints.families import SIDE_STEP, Description
from safelight.spec import Denoised, Draft, HighresFix, ImageToImage

WELL = 1.25
"""Times its own area that a model draws about as well as that."""
PROPORTIONS = (1.0, 3 / 2, 2 / 3, 16 / 9, 9 / 16)
STRENGTH = 0.4
MIN_STEPS = 3
"""Of which one is left at that strength."""
MAX_SCALE = 8.0
"""As `spec.Scale` has it."""


def good_sizes(about: Description) -> list[str]:
    """Width and height, in the proportions that are most often wanted."""
    if about.defaults.width != about.defaults.height:
        return [f"{about.defaults.width}x{about.defaults.height}"]
    area, step = own_area(about), about.side_step
    return ["{}x{}".format(*same_area(proportion, area, step)) for proportion in PROPORTIONS]


def own_area(about: Description) -> int:
    return about.defaults.width * about.defaults.height


def require_area(about: Description, spec: Denoised, *, most: float) -> None:
    """
    Raises:
        UnsupportedOption: the network would be given more than so many times its own area at once.
    """
    width, height = spec.width, spec.height
    if isinstance(spec, ImageToImage) and spec.tiles is not None:
        width = height = spec.tiles.side or about.defaults.width
    times = width * height / own_area(about)
    if times > most:
        raise UnsupportedOption(
            "size",
            f"{width}x{height} is {times:.3g} times the area that {spec.model} was made for, and at most {most:g} "
            f"times are drawn at once. It draws {', '.join(good_sizes(about))} well; larger pictures are made from "
            "these by highres, by upscaling, or in tiles over an init picture",
        )


def not_well(draft: Draft, about: Description) -> str | None:
    """What is to be said of a size that is drawn all the same, where the model does not draw it well."""
    begun = by_highres(draft, about)
    if begun is draft:
        return None
    assert begun.highres is not None
    first = f"--width {begun.width} --height {begun.height}"
    return (
        f"{draft.model} draws {', '.join(good_sizes(about))} well; in a picture of another area shapes fall apart. "
        f"{first} --highres {begun.highres.scale:.4g} --highres-strength {STRENGTH:g} keeps them"
    )


def by_highres(draft: Draft, about: Description, *, above: float = WELL) -> Draft:
    """A draft of a picture of more than so many times the model's own area, begun at about that area; of others, and of
    what starts from a picture, the draft itself."""
    width, height = draft.width or about.defaults.width, draft.height or about.defaults.height
    plain = draft.highres is None and draft.init is None and about.reads == "words"
    if not plain or width * height <= above * own_area(about):
        return draft
    first = first_pass(width, height, own_area(about), about.side_step)
    if first is None:
        return draft
    steps = draft.steps or about.defaults.steps
    more = MIN_STEPS if steps < MIN_STEPS else None
    highres = HighresFix(scale=width / first[0], strength=STRENGTH, steps=more)
    return draft.model_copy(update={"width": first[0], "height": first[1], "highres": highres})


def first_pass(width: int, height: int, area: int, step: int) -> tuple[int, int] | None:
    """The size nearest to an area from which one factor leads to exactly this size; None where there is none."""
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
    """Width and height of about that many pixels in that proportion of width to height."""
    height = sqrt(area / proportion)
    return rounded(height * proportion, step), rounded(height, step)


def rounded(side: float, step: int) -> int:
    """The nearest side that a spec may have."""
    return min(max(64, round(side / step) * step), 4096)
