"""Draw a canvas larger than the network was trained for, in overlapping tiles (MultiDiffusion, arXiv:2302.08113).

In every call each tile is a batch row; where tiles overlap, their outputs are averaged, with weights that fall off
towards a tile's edge. The canvas itself is never split: the sampler updates all of it at once, so there are no seams.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from safelight.diffusion.shapes import Latents, Tiles

Corner = tuple[int, int]
"""(top, left), in latent pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    side: int
    """Of a tile, in latent pixels; shorter if the canvas is."""
    overlap: int
    """Minimum overlap of neighbouring tiles, in latent pixels."""

    def corners(self, height: int, width: int) -> list[Corner]:
        return list(product(self.starts(height), self.starts(width)))

    def starts(self, length: int) -> list[int]:
        """Return evenly spread positions, so that no tile is a sliver."""
        if length <= self.side:
            return [0]
        step = max(self.side - self.overlap, 1)
        gaps = -(-(length - self.side) // step)
        return [round(index * (length - self.side) / gaps) for index in range(gaps + 1)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        return min(self.side, height), min(self.side, width)

    def area(self, height: int, width: int) -> int:
        """Return the area of all tiles together, in latent pixels."""
        tile_height, tile_width = self.size(height, width)
        return len(self.corners(height, width)) * tile_height * tile_width

    def cut(self, canvas: Latents) -> Tiles:
        """Split (b, c, H, W) into (b n, c, h, w): the n tiles of each row follow each other."""
        height, width = canvas.shape[-2:]
        h, w = self.size(height, width)
        tiles = [canvas[..., y : y + h, x : x + w] for y, x in self.corners(height, width)]
        return torch.stack(tiles, dim=1).flatten(0, 1)

    def join(self, tiles: Tiles, height: int, width: int) -> Latents:
        """Blend tiles from `cut` into a canvas; unchanged tiles give the same canvas up to rounding."""
        corners, (h, w) = self.corners(height, width), self.size(height, width)
        by_row = tiles.unflatten(0, (-1, len(corners)))
        mask = ramp(h, self.overlap, tiles)[:, None] * ramp(w, self.overlap, tiles)[None, :]
        total = tiles.new_zeros(len(by_row), tiles.shape[1], height, width)
        weight = tiles.new_zeros(height, width)
        for number, (y, x) in enumerate(corners):
            total[..., y : y + h, x : x + w] += by_row[:, number] * mask
            weight[y : y + h, x : x + w] += mask
        return total / weight


def ramp(length: int, fade: int, like: Tensor) -> Tensor:
    """Return weights (length,) that rise over `fade` pixels, stay 1 and fall; never 0, so that edge pixels count."""
    rising = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / max(fade, 1)
    return torch.minimum(rising, rising.flip(0)).clamp(max=1)
