"""Has a model learnt its pictures by heart? Two questions, both answered beside real pictures that it never saw.

samples, training pictures, held-out pictures -> nearest neighbours -> which samples are copies
losses of members, losses of others -> the area under the curve -> can membership be told?
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """For each sample the nearest training picture."""

    nearest: list[int]
    distances: list[float]
    threshold: float
    """The distance at which only `false_alarms` of the held-out real pictures would be called copies."""

    @property
    def copies(self) -> list[int]:
        """The samples that are nearer than that."""
        return [place for place, distance in enumerate(self.distances) if distance < self.threshold]

    @property
    def share(self) -> float:
        return len(self.copies) / len(self.distances)


def find_neighbours(
    samples: Tensor, training: Tensor, held_out: Tensor | None, *, false_alarms: float = 0.05
) -> Neighbours:
    """Nearest training picture of each sample, by the distance of rows; the threshold comes from held-out rows.

    Real pictures have near neighbours too (a series by one artist, a plain subject): a fixed threshold would call
    these copies, so the one used is what held-out pictures themselves stay above. Where none were held out, each
    training picture is held against the others.
    """
    if held_out is None:
        usual = torch.cdist(training.double(), training.double()).fill_diagonal_(torch.inf).min(dim=1).values
    else:
        usual = torch.cdist(held_out.double(), training.double()).min(dim=1).values
    found = torch.cdist(samples.double(), training.double()).min(dim=1)
    return Neighbours(
        nearest=found.indices.tolist(),
        distances=found.values.tolist(),
        threshold=float(torch.quantile(usual, false_alarms)),
    )


def membership_auc(members: Tensor, others: Tensor) -> float:
    """The chance that a member's loss is below that of a picture that was never seen; ties count half.

    .5 is no better than a coin; 1 means that every training picture betrays itself.
    """
    below = (members[:, None] < others[None]).double() + 0.5 * (members[:, None] == others[None]).double()
    return float(below.mean())


def auc_interval(members: Tensor, others: Tensor, *, draws: int = 1000) -> tuple[float, float]:
    """The middle 95 % of what the area would be with other pictures of the same kinds (a bootstrap over both)."""
    generator = torch.Generator().manual_seed(0)

    def again(losses: Tensor) -> Tensor:
        return losses[torch.randint(len(losses), (len(losses),), generator=generator)]

    found = torch.tensor([membership_auc(again(members), again(others)) for _ in range(draws)])
    return float(found.quantile(0.025)), float(found.quantile(0.975))


def in_words(auc: float) -> str:
    """What an area under the curve means, for who reads a report."""
    if auc < 0.55:
        return "Training pictures cannot be told from others by the model's losses."
    if auc < 0.65:
        return "Training pictures are slightly easier for the model than others: a trace of memory."
    if auc < 0.8:
        return "Training pictures can often be told from others: the model has begun to learn them by heart."
    return "Training pictures can be told from others nearly always: the model has learnt them by heart."
