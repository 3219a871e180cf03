"""One update for a whole batch, in which every picture may be at another step of another sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safelight.diffusion.schedule import HISTORY, Schedule
from safelight.diffusion.shapes import History, Latents, PerRow, PerRowHistory


@dataclass(frozen=True, slots=True)
class Rows:
    """One table row per picture of a batch, as one small float32 tensor; `Schedule.packed` names its columns."""

    packed: Tensor
    depth: int
    """How many history entries some picture of the batch needs, 1 to 4; older ones are not read."""

    @classmethod
    def gather(cls, places: Sequence[tuple[Schedule, int]]) -> "Rows":
        """The row each picture has reached."""
        packed = np.stack([schedule.packed[i] for schedule, i in places])
        return cls(torch.from_numpy(packed), max(int(schedule.depth[i]) for schedule, i in places))

    def of(self, pictures: Sequence[int]) -> "Rows":
        """Those of some pictures of the batch."""
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

    Histories hold the newest entry at index 0, and must be finite where a picture has no past yet (zeros, say).
    `noise` may be None when no picture of the batch wants any.
    """
    # Products and sums one by one, not a batched matrix product: that picks its kernel by batch size, and a
    # picture must have the same bits alone and in company. A neighbour's deeper history adds only exact zeros.
    result = latents[:, 0] * _column(rows.x, 0)
    result += outputs[:, 0] * _column(rows.m, 0)
    for k in range(1, rows.depth):
        result += latents[:, k] * _column(rows.x, k)
        result += outputs[:, k] * _column(rows.m, k)
    if noise is not None:
        result += noise * rows.noise.view(-1, 1, 1, 1)
    return result


def denoised(latents: Latents, outputs: Latents, rows: Rows) -> Latents:
    """The clean estimate (x0) that the newest network output stands for; what previews show."""
    return latents * rows.denoised_x.view(-1, 1, 1, 1) + outputs * rows.denoised_m.view(-1, 1, 1, 1)


def _column(coefficients: PerRowHistory, k: int) -> Tensor:
    return coefficients[:, k].view(-1, 1, 1, 1)
