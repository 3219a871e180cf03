"""Metrics of the differences between two models that drew the same prompts with the same seeds.

    pictures, prompts, training pictures -> unit vectors -> similarity, likeness, diversity, drift

Rows are prompts, columns are seeds.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def compare_pictures(
    before: Tensor,
    after: Tensor,
    *,
    neutral: Tensor,
    prompts: Tensor,
    judged: Tensor,
    training: Tensor | None,
) -> dict[str, float]:
    """The metrics by name; those that cannot be measured are left out.

    Args:
        before: (prompts, seeds, dim) unit vectors of the first model's pictures; `after` those of the second.
        neutral: (prompts,) bool, prompts unrelated to the training data.
        prompts: (prompts, dim) unit vectors of the prompts; `judged` (prompts,) is true where they are meaningful.
        training: (n, dim) unit vectors of the second model's training pictures.
    """
    metrics: dict[str, float] = {}
    if judged.any():
        metrics |= both("prompt_similarity", *(similarity(each[judged], prompts[judged]) for each in (before, after)))
        metrics |= both("prompt_fidelity", *(fidelity(each[judged], prompts[judged]) for each in (before, after)))
        metrics["prompt_fidelity_change"] = metrics["prompt_fidelity_after"] - metrics["prompt_fidelity_before"]
    taught = ~neutral
    if training is not None and taught.any():
        metrics |= both("likeness", *(likeness(each[taught], training) for each in (before, after)))
        metrics["likeness_change"] = metrics["likeness_after"] - metrics["likeness_before"]
    if before.shape[1] > 1:
        measured = taught if taught.any() else neutral
        metrics |= both("diversity", *(spread(each[measured]) for each in (before, after)))
        metrics["diversity_ratio"] = metrics["diversity_after"] / max(metrics["diversity_before"], 1e-9)
    if neutral.sum() > 1:
        metrics["neutral_drift"] = drift(before[neutral], after[neutral])
    return metrics


def both(name: str, before: float, after: float) -> Mapping[str, float]:
    return {f"{name}_before": before, f"{name}_after": after}


def similarity(pictures: Tensor, prompts: Tensor) -> float:
    """Mean cosine of each picture (prompts, seeds, dim) and its own prompt (prompts, dim)."""
    return float((pictures * prompts[:, None]).sum(-1).mean())


def fidelity(pictures: Tensor, prompts: Tensor) -> float:
    """Share of pictures (prompts, seeds, dim) most similar to their own prompt among all prompts (prompts, dim).

    A style unknown to the encoder lowers all similarities, but hardly changes which prompt is the most similar.
    """
    similarities = pictures @ prompts.T
    own = (pictures * prompts[:, None]).sum(-1)
    return float((own >= similarities.amax(-1) - 1e-6).double().mean())


def likeness(pictures: Tensor, training: Tensor) -> float:
    """Mean cosine of the pictures (prompts, seeds, dim) and the mean of the training pictures (n, dim)."""
    return float((pictures @ F.normalize(training.mean(0), dim=-1)).mean())


def spread(pictures: Tensor) -> float:
    """Mean distance, 1 - cosine, of two pictures of one prompt; (prompts, seeds, dim)."""
    seeds = pictures.shape[1]
    cosines = pictures @ pictures.mT
    same = cosines.diagonal(dim1=1, dim2=2).sum(-1)
    return float((1 - (cosines.sum((1, 2)) - same) / (seeds * (seeds - 1))).mean())


def drift(before: Tensor, after: Tensor) -> float:
    """Distance between both models' pictures (prompts, seeds, dim) of the same prompt and seed, relative to the
    distance between prompts: 0 means the same pictures, 1 means as different as pictures of other prompts."""
    changed = 1 - (before * after).sum(-1).mean()
    means = before.mean(1)
    others = ~torch.eye(len(means), dtype=torch.bool)
    between_prompts = 1 - (means @ means.T)[others].mean()
    return float(changed / between_prompts.clamp(min=1e-9))
