"""AUTOMATIC1111's script "SD upscale": a picture is enlarged, unless by None, and drawn over in tiles of a given size.

There each tile is a picture of its own, laid over its neighbours; here they are drawn together (docs/editing.md).
"""

from collections.abc import Sequence
from typing import Any

from safelight.errors import InvalidRequest
from safelight.models.vision.upscalers import Upscalers
from safelight.serving.a1111.upscalers import NONE, ours_for, upscalers_by_name

SD_UPSCALE = "sd upscale"


def enlarged(args: Sequence[Any], upscalers: Upscalers, *, width: int, height: int) -> dict[str, Any]:
    """In the words of `spec.Draft`. The script's arguments: a heading, the overlap in pixels, the upscaler by its name
    or its place in `/upscalers`, and how many times as large.

    Raises:
        InvalidRequest: 422, they are others.
        UnsupportedOption: nothing enlarges pictures by that name here.
    """
    names = [NONE, *upscalers_by_name(upscalers)]
    try:
        *_, overlap, named, scale = args
        name = dict(enumerate(names))[named] if isinstance(named, int) else str(named)
        overlap, scale = int(overlap), float(scale)
    except (KeyError, OverflowError, TypeError, ValueError):
        error = InvalidRequest(
            'script_args: SD upscale takes a heading, an overlap, an upscaler and a factor, as ["", 64, "Lanczos", 2]'
        )
        error.status = 422
        raise error from None
    name = {theirs.casefold(): theirs for theirs in names}.get(name.casefold(), name)
    if name == NONE:  # whatever the factor, as there
        ours, scale = "lanczos", 1.0
    else:
        ours = ours_for("script_args", name, upscalers)
    tiles = {"side": min(width, height), "overlap": overlap, "upscaler": ours}
    return {"width": None, "height": None, "scale": scale, "tiles": tiles}
