"""AUTOMATIC1111's script "SD upscale": upscale a picture, unless the upscaler is None, and redraw it in tiles.

There each tile is a separate picture, pasted over its neighbours; here all are denoised together (docs/editing.md).
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, StrictInt, StrictStr, ValidationError

from safelight.errors import InvalidField
from safelight.models.vision.upscalers import Upscalers
from safelight.serving.a1111.upscalers import NONE, method_for, upscalers_by_name
from safelight.spec.fields import Margin, OrOwnSize

SD_UPSCALE = "sd upscale"


class Arguments(BaseModel):
    overlap: Margin
    upscaler: StrictStr | StrictInt
    scale: OrOwnSize


def upscale_fields(args: Sequence[Any], upscalers: Upscalers, *, width: int, height: int) -> dict[str, Any]:
    """The draft fields of the script. Its arguments: a heading, the overlap in pixels, the upscaler by its name or its
    index in `/upscalers`, and the scale.

    Raises:
        InvalidField: 422, the arguments are invalid.
        UnsupportedOption: no upscaler has this name.
    """
    names = [NONE, *upscalers_by_name(upscalers)]
    try:
        arguments = Arguments.model_validate(dict(zip(Arguments.model_fields, args[-3:], strict=True)))
        name = dict(enumerate(names))[arguments.upscaler] if isinstance(arguments.upscaler, int) else arguments.upscaler
    except (KeyError, ValidationError, ValueError):
        reason = (
            'SD upscale takes a heading, an overlap, an upscaler and a factor, as ["", 64, "Lanczos", 2]; '
            "the overlap is a multiple of 8 up to 2048, the factor 1 to 8"
        )
        error = InvalidField("script_args", reason)
        error.status = 422
        raise error from None
    scale = arguments.scale
    name = {theirs.casefold(): theirs for theirs in names}.get(name.casefold(), name)
    if name == NONE:  # whatever the factor, as in AUTOMATIC1111
        ours, scale = "lanczos", 1.0
    else:
        ours = method_for("script_args", name, upscalers)
    tiles = {"side": min(width, height), "overlap": arguments.overlap, "upscaler": ours}
    return {"width": None, "height": None, "scale": scale, "tiles": tiles}
