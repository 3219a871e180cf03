"""A denoiser over a canvas, out of one over tiles: a row becomes its tiles, and its output is joined of theirs."""

from dataclasses import replace
from typing import Any

import torch

from safelight.diffusion.shapes import Latents, PerRow
from safelight.diffusion.tiling import Tiling
from safelight.models.backends.denoiser import Conditions, Denoiser
from safelight.models.hooks.attention_mask import AttentionMask


def tiled(denoise: Denoiser, tiling: Tiling, *, most_rows: int, scale: int) -> Denoiser:
    """`most_rows` tiles go through the network at once; `scale` is image pixels per latent pixel."""

    def over_canvas(latents: Latents, timesteps: PerRow, conditions: Conditions) -> Latents:
        height, width = latents.shape[-2:]
        corners = tiling.corners(height, width)
        rows = torch.arange(len(latents), device=latents.device).repeat_interleave(len(corners))
        tiles = tiling.cut(latents)
        told = of_tiles(conditions, rows, tiling, size=(height, width), scale=scale)
        calls = [slice(first, first + most_rows) for first in range(0, len(tiles), most_rows)]
        parts = [part(told, call) for call in calls]
        outputs = [denoise(tiles[call], timesteps[rows[call]], some) for call, some in zip(calls, parts, strict=True)]
        if conditions.attention_mask is not None:
            # Where tiles overlap, what one looked at and another did not is blurred by half.
            seen = [
                some.attention_mask.masks
                for some in parts
                if some.attention_mask and some.attention_mask.masks is not None
            ]
            conditions.attention_mask.masks = tiling.join(torch.cat(seen), height, width)
        return tiling.join(torch.cat(outputs), height, width)

    return over_canvas


PER_ROW = ("adapters", "pictures", "freeu", "perturbed")


def of_tiles(
    conditions: Conditions, rows: torch.Tensor, tiling: Tiling, *, size: tuple[int, int], scale: int
) -> Conditions:
    """What each tile is told: its row's words, and to SDXL, which part of which picture it is."""
    told = conditions
    taken: dict[str, Any] = {
        name: value[rows]
        for name in ("context", "mask", "pooled", "time_ids", "guidance")
        if (value := getattr(told, name)) is not None
    }
    if told.time_ids is not None:
        corners = torch.tensor(tiling.corners(*size), device=rows.device)
        h, w = tiling.size(*size)
        times = taken["time_ids"].clone()
        times[:, 2:4] = scale * corners.repeat(len(rows) // len(corners), 1).to(times)
        if not told_score(times):
            times[:, 4], times[:, 5] = scale * h, scale * w
        taken["time_ids"] = times
    assert told.controls is None, "a spec with tiles has no controls"
    for name in PER_ROW:
        if (value := getattr(told, name)) is not None:
            taken[name] = [value[row] for row in rows.tolist()]
    if told.attention_mask is not None:
        taken["attention_mask"] = AttentionMask([told.attention_mask.rows[row] for row in rows.tolist()])
    return replace(told, **taken)


def told_score(times: torch.Tensor) -> bool:
    """SDXL's refiner is told a score in place of the size that the picture is cropped to."""
    return times.shape[1] == 5


def part(conditions: Conditions, rows: slice) -> Conditions:
    names = ("context", "mask", "pooled", "time_ids", "guidance", *PER_ROW)
    attention_mask = conditions.attention_mask and AttentionMask(conditions.attention_mask.rows[rows])
    return replace(
        conditions,
        attention_mask=attention_mask,
        **{name: value[rows] for name in names if (value := getattr(conditions, name)) is not None},
    )
