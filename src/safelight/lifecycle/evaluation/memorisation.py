"""Tests of memorisation, both calibrated on real pictures that the model was not trained on.

samples, training pictures, held-out pictures -> nearest neighbours -> samples that are copies
losses of members, losses of others -> area under the curve of membership inference
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The nearest training picture of each sample."""

    nearest: list[int]
    distances: list[float]
    threshold: float
    """The distance below which a share of `false_alarms` of the held-out real pictures would count as copies."""

    @property
    def copies(self) -> list[int]:
        """Indices of the samples below the threshold."""
        return [index for index, distance in enumerate(self.distances) if distance < self.threshold]

    @property
    def share(self) -> float:
        return len(self.copies) / len(self.distances)


def find_neighbours(
    samples: Tensor, training: Tensor, held_out: Tensor | None, *, false_alarms: float = 0.05
) -> Neighbours:
    """Nearest training row of each sample row, and a threshold from the held-out rows.

    Real pictures have near neighbours too (a series by one artist, a plain subject), which a fixed threshold would
    call copies. The threshold is therefore a quantile of the distances of held-out pictures; without held-out
    pictures, of the distances of training pictures to each other.

    Args:
        samples: (s, dim), `training` (n, dim) and `held_out` (h, dim).
        false_alarms: share of held-out rows below the threshold.
    """
    if held_out is None:
        usual = torch.cdist(training.double(), training.double()).fill_diagonal_(torch.inf).min(dim=1).values
    else:
        usual = torch.cdist(held_out.double(), training.double()).min(dim=1).values
    minimum = torch.cdist(samples.double(), training.double()).min(dim=1)
    return Neighbours(
        nearest=minimum.indices.tolist(),
        distances=minimum.values.tolist(),
        threshold=float(torch.quantile(usual, false_alarms)),
    )


def membership_auc(members: Tensor, others: Tensor) -> float:
    """The probability that a member's loss (n,) is below a non-member's (m,); ties count half.

    0.5 is chance; 1 means that every training picture can be identified.
    """
    below = (members[:, None] < others[None]).double() + 0.5 * (members[:, None] == others[None]).double()
    return float(below.mean())


def auc_interval(members: Tensor, others: Tensor, *, draws: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of the area, resampling both the members (n,) and the others (m,)."""
    generator = torch.Generator().manual_seed(0)

    def resample(losses: Tensor) -> Tensor:
        return losses[torch.randint(len(losses), (len(losses),), generator=generator)]

    areas = torch.tensor([membership_auc(resample(members), resample(others)) for _ in range(draws)])
    return float(areas.quantile(0.025)), float(areas.quantile(0.975))


def describe_auc(auc: float) -> str:
    """The meaning of an area under the curve in one sentence, for the report."""
    if auc < 0.55:
        return "The model's losses cannot distinguish training pictures from others."
    if auc < 0.65:
        return "The model's losses are slightly lower on training pictures than on others: a trace of memorisation."
    if auc < 0.8:
        return "The model's losses often distinguish training pictures from others: it has begun to memorise them."
    return "The model's losses nearly always distinguish training pictures from others: it has memorised them."
