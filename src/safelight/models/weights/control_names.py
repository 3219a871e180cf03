"""What the original code of ControlNet and T2I-Adapter calls the weights that diffusers keeps under other names.

A ControlNet is the first half of its model's network, so its names are those of `ldm_names`, and a few of its own.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from safelight.models.weights.ldm_names import Modules, rename, turned, unet_modules

LDM_PREFIX = "control_model."
DEEPER = re.compile(r"^(input_blocks|input_hint_block|middle_block|middle_block_out|zero_convs|time_embed|label_emb)\.")


def control_modules(unet: Mapping[str, Any], *, num_hints: int, num_residuals: int) -> Modules:
    """From diffusers' module to ldm's, for the network that `unet` configures.

    Args:
        num_hints: widths in the stack of convolutions that reads the hint.
        num_residuals: outputs, without the middle's.
    """
    modules = {
        ours: theirs
        for ours, theirs in unet_modules(unet).items()
        if not ours.startswith(("up_blocks.", "conv_norm_out", "conv_out"))
    }
    last = 2 * (num_hints - 1)
    modules["controlnet_cond_embedding.conv_in"] = "input_hint_block.0"
    # Between two convolutions there is an activation, which has a number too.
    for number in range(last):
        modules[f"controlnet_cond_embedding.blocks.{number}"] = f"input_hint_block.{2 * (number + 1)}"
    modules["controlnet_cond_embedding.conv_out"] = f"input_hint_block.{2 * (last + 1)}"
    for number in range(num_residuals):
        modules[f"controlnet_down_blocks.{number}"] = f"zero_convs.{number}.0"
    return modules | {"controlnet_mid_block": "middle_block_out.0"}


def from_ldm_control(names: Iterable[str], unet: Mapping[str, Any]) -> dict[str, str | None]:
    """diffusers' name of each tensor; None where its code has no such tensor."""
    names = list(names)
    hints = {number for name in names if (number := number_in(r"input_hint_block\.(\d+)\.weight", name)) is not None}
    residuals = {number for name in names if (number := number_in(r"zero_convs\.(\d+)\.", name)) is not None}
    num_residuals = 1 + max(residuals, default=-1)
    ours = turned(control_modules(unet, num_hints=len(hints) // 2, num_residuals=num_residuals))
    return {name: rename(name, ours) for name in names}


def from_original_t2i(names: Iterable[str]) -> dict[str, str]:
    """diffusers' names: there, the blocks of all levels stand in one row; here, by level.

    A light adapter is named alike on both sides, but for what its levels hold.
    """
    names = list(names)
    if any(re.match(r"body\.\d+\.body\.", name) for name in names):
        return {name: f"adapter.{name.replace('.body.', '.resnets.')}" for name in names}
    blocks = 1 + max((number_in(r"body\.(\d+)\.", name) or 0 for name in names), default=0)
    per_level = resnets_per_level(names, blocks)

    def renamed(name: str) -> str:
        place = number_in(r"body\.(\d+)\.", name)
        if place is None:
            return f"adapter.{name}"
        level, block = divmod(place, per_level)
        inside = name.split(".", 2)[2]
        where = inside if inside.startswith("in_conv.") else f"resnets.{block}.{inside}"
        return f"adapter.body.{level}.{where}"

    return {name: renamed(name) for name in names}


def resnets_per_level(names: Iterable[str], blocks: int) -> int:
    """A level that widens begins with a convolution; its place tells how long a level is. Both known kinds have 2."""
    widening = sorted({place for name in names if (place := number_in(r"body\.(\d+)\.in_conv\.", name))})
    return widening[0] if widening and blocks % widening[0] == 0 else 2


def number_in(pattern: str, name: str) -> int | None:
    found = re.match(pattern, name)
    return int(found[1]) if found else None
