"""One sampler update for a whole batch, in which every image may be at a different step of a different sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safelight.diffusion.schedule import HISTORY, Schedule
from safelight.diffusion.shapes import History, Latents, PerRow, PerRowHistory


@dataclass(frozen=True, slots=True)
class Rows:
    """One table row per image of a batch, as one small float32 tensor; `Schedule.packed` names its columns."""

    packed: Tensor
    """(b, 2 K + 5)"""
    depth: int
    """History entries read for the batch, 1 to 4: the largest number that any of its images needs."""

    @classmethod
    def gather(cls, positions: Sequence[tuple[Schedule, int]]) -> "Rows":
        """Collect each image's current row; a position is a schedule and a row index."""
        packed = np.stack([schedule.packed[i] for schedule, i in positions])
        return cls(torch.from_numpy(packed), max(int(schedule.depth[i]) for schedule, i in positions))

    def of(self, pictures: Sequence[int]) -> "Rows":
        """Select the rows of some images of the batch."""
        return Rows(self.packed[list(pictures)], self.depth)

    def to(self, device: torch.device | str) -> "Rows":
        return Rows(self.packed.to(device, non_blocking=True), self.depth)

    @property
    def x(self) -> PerRowHistory:
        return self.packed[:, :HISTORY]

    @property
    def m(self) -> PerRowHistory:
        return self.packed[:, HISTORY : 2 * HISTORY]

    @property
    def noise(self) -> PerRow:
        return self.packed[:, 2 * HISTORY]

    @property
    def timesteps(self) -> PerRow:
        return self.packed[:, 2 * HISTORY + 1]

    @property
    def input_scale(self) -> PerRow:
        return self.packed[:, 2 * HISTORY + 2]

    @property
    def denoised_x(self) -> PerRow:
        return self.packed[:, 2 * HISTORY + 3]

    @property
    def denoised_m(self) -> PerRow:
        return self.packed[:, 2 * HISTORY + 4]


def advance(latents: History, outputs: History, rows: Rows, noise: Latents | None = None) -> Latents:
    """One linear multistep update per picture: x' = X.x + M.m + S.noise (docs/decisions/0002).

    Histories have the newest entry at index 0, and must be finite (e.g. zeros) where an image has no past yet.
    `noise` may be None if no image of the batch needs any.
    """
    # Products and sums one by one, not a batched matrix product: its kernel depends on the batch size, and an image
    # must have the same bits alone and in any batch. A neighbour's deeper history adds only exact zeros.
    result = latents[:, 0] * _column(rows.x, 0)
    result += outputs[:, 0] * _column(rows.m, 0)
    for k in range(1, rows.depth):
        result += latents[:, k] * _column(rows.x, k)
        result += outputs[:, k] * _column(rows.m, k)
    if noise is not None:
        result += noise * rows.noise.view(-1, 1, 1, 1)
    return result


def denoised(latents: Latents, outputs: Latents, rows: Rows) -> Latents:
    """Return the clean estimate (x0) of the newest network output, as shown in previews."""
    return latents * rows.denoised_x.view(-1, 1, 1, 1) + outputs * rows.denoised_m.view(-1, 1, 1, 1)


def _column(coefficients: PerRowHistory, k: int) -> Tensor:
    return coefficients[:, k].view(-1, 1, 1, 1)
