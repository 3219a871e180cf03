"""AUTOMATIC1111's script "SD upscale": a picture is enlarged, unless by None, and drawn over in tiles of a given size.

There each tile is a picture of its own, laid over its neighbours; here they are drawn together (docs/editing.md).
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, StrictInt, StrictStr, ValidationError

from safelight.errors import InvalidField
from safelight.models.vision.upscalers import Upscalers
from safelight.serving.a1111.upscalers import NONE, ours_for, upscalers_by_name
from safelight.spec.fields import Margin, OrOwnSize

SD_UPSCALE = "sd upscale"


class Arguments(BaseModel):
    overlap: Margin
    upscaler: StrictStr | StrictInt
    scale: OrOwnSize


def enlarged(args: Sequence[Any], upscalers: Upscalers, *, width: int, height: int) -> dict[str, Any]:
    """In the words of `spec.Draft`. The script's arguments: a heading, the overlap in pixels, the upscaler by its name
    or its place in `/upscalers`, and how many times as large.

    Raises:
        InvalidField: 422, they are others.
        UnsupportedOption: nothing enlarges pictures by that name here.
    """
    names = [NONE, *upscalers_by_name(upscalers)]
    try:
        said = Arguments.model_validate(dict(zip(Arguments.model_fields, args[-3:], strict=True)))
        name = dict(enumerate(names))[said.upscaler] if isinstance(said.upscaler, int) else said.upscaler
    except (KeyError, ValidationError, ValueError):
        why = (
            'SD upscale takes a heading, an overlap, an upscaler and a factor, as ["", 64, "Lanczos", 2]; '
            "the overlap is a multiple of 8 up to 2048, the factor 1 to 8"
        )
        error = InvalidField("script_args", why)
        error.status = 422
        raise error from None
    scale = said.scale
    name = {theirs.casefold(): theirs for theirs in names}.get(name.casefold(), name)
    if name == NONE:  # whatever the factor, as there
        ours, scale = "lanczos", 1.0
    else:
        ours = ours_for("script_args", name, upscalers)
    tiles = {"side": min(width, height), "overlap": said.overlap, "upscaler": ours}
    return {"width": None, "height": None, "scale": scale, "tiles": tiles}
