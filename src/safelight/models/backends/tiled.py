"""A denoiser over a canvas, out of one over tiles: a row becomes its tiles, and its output is joined of theirs."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from safelight.diffusion.shapes import Latents, PerRow
from safelight.diffusion.tiling import Tiling
from safelight.models.backends.denoiser import Conditions, Denoiser


def tiled(denoise: Denoiser, tiling: Tiling, *, most_rows: int, scale: int) -> Denoiser:
    """`most_rows` tiles go through the network at once; `scale` is image pixels per latent pixel."""

    def over_canvas(latents: Latents, timesteps: PerRow, conditions: Conditions) -> Latents:
        height, width = latents.shape[-2:]
        corners = tiling.corners(height, width)
        rows = torch.arange(len(latents), device=latents.device).repeat_interleave(len(corners))
        tiles = tiling.cut(latents)
        all_tiles = of_tiles(conditions, rows.tolist(), tiling, size=(height, width), scale=scale)
        outputs: list[torch.Tensor] = []
        for first in range(0, len(tiles), most_rows):
            call = slice(first, min(first + most_rows, len(tiles)))
            outputs.append(denoise(tiles[call], timesteps[rows[call]], all_tiles.take(range(call.start, call.stop))))
        return tiling.join(torch.cat(outputs), height, width)

    return over_canvas


def of_tiles(
    conditions: Conditions, rows: Sequence[int], tiling: Tiling, *, size: tuple[int, int], scale: int
) -> Conditions:
    """The conditions of each tile: its row's own, and for SDXL, which part of which picture it is."""
    taken = conditions.take(rows)
    if taken.time_ids is None:
        return taken
    corners = torch.tensor(tiling.corners(*size), device=taken.time_ids.device)
    h, w = tiling.size(*size)
    times = taken.time_ids.clone()
    times[:, 2:4] = scale * corners.repeat(len(rows) // len(corners), 1).to(times)
    if not has_score(times):
        times[:, 4], times[:, 5] = scale * h, scale * w
    return replace(taken, time_ids=times)


def has_score(times: torch.Tensor) -> bool:
    """(b, 5 or 6): SDXL's refiner takes an aesthetic score in place of the target size."""
    return times.shape[1] == 5
