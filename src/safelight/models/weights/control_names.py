"""Tensor names of the original code of ControlNet and T2I-Adapter, and diffusers' names for them.

A ControlNet is the first half of its model's network, so its names are those of `ldm_names`, plus a few.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from safelight.models.weights.ldm_names import Modules, inverted, rename, unet_modules

LDM_PREFIX = "control_model."
DEEPER = re.compile(r"^(input_blocks|input_hint_block|middle_block|middle_block_out|zero_convs|time_embed|label_emb)\.")


def control_modules(unet: Mapping[str, Any], *, num_hints: int, num_residuals: int) -> Modules:
    """Return ldm's module names by diffusers', for the network that `unet` configures.

    Args:
        num_hints: number of widths in the convolutions that read the hint.
        num_residuals: number of outputs, without that of the mid block.
    """
    modules = {
        ours: theirs
        for ours, theirs in unet_modules(unet).items()
        if not ours.startswith(("up_blocks.", "conv_norm_out", "conv_out"))
    }
    last = 2 * (num_hints - 1)
    modules["controlnet_cond_embedding.conv_in"] = "input_hint_block.0"
    # The activations between the convolutions are numbered too.
    for number in range(last):
        modules[f"controlnet_cond_embedding.blocks.{number}"] = f"input_hint_block.{2 * (number + 1)}"
    modules["controlnet_cond_embedding.conv_out"] = f"input_hint_block.{2 * (last + 1)}"
    for number in range(num_residuals):
        modules[f"controlnet_down_blocks.{number}"] = f"zero_convs.{number}.0"
    return modules | {"controlnet_mid_block": "middle_block_out.0"}


def from_ldm_control(names: Iterable[str], unet: Mapping[str, Any]) -> dict[str, str | None]:
    """Return diffusers' name of each tensor; None if diffusers has no such tensor."""
    names = list(names)
    hints = {number for name in names if (number := number_in(r"input_hint_block\.(\d+)\.weight", name)) is not None}
    residuals = {number for name in names if (number := number_in(r"zero_convs\.(\d+)\.", name)) is not None}
    num_residuals = 1 + max(residuals, default=-1)
    ours = inverted(control_modules(unet, num_hints=len(hints) // 2, num_residuals=num_residuals))
    return {name: rename(name, ours) for name in names}


def from_original_t2i(names: Iterable[str]) -> dict[str, str]:
    """Return diffusers' names: the original numbers the blocks of all levels consecutively, diffusers by level.

    A light adapter has the same names on both sides, except inside its levels.
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
    """Return the blocks per level, from the index of a widening convolution, which begins a level. Usually 2."""
    widening = sorted({place for name in names if (place := number_in(r"body\.(\d+)\.in_conv\.", name))})
    return widening[0] if widening and blocks % widening[0] == 0 else 2


def number_in(pattern: str, name: str) -> int | None:
    found = re.match(pattern, name)
    return int(found[1]) if found else None
