"""Two models asked the same things: what changed from the first to the second, in numbers.

    pictures, prompts, training pictures -> unit vectors -> similarity, likeness, diversity, drift

Rows are prompts, columns are seeds; both models draw each prompt with each seed.
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
    """The numbers that a policy may bound; what cannot be measured is left out.

    Args:
        before: (prompts, seeds, dim) unit vectors of the first model's pictures; `after` those of the second.
        neutral: (prompts,) which prompts have nothing to do with what was learnt.
        prompts: (prompts, dim) unit vectors of the prompts; `judged` says of which ones they mean something.
        training: (n, dim) unit vectors of the pictures that the second model learnt from.
    """
    found: dict[str, float] = {}
    if judged.any():
        found |= both("prompt_similarity", *(similarity(each[judged], prompts[judged]) for each in (before, after)))
        found |= both("prompt_fidelity", *(fidelity(each[judged], prompts[judged]) for each in (before, after)))
        found["prompt_fidelity_change"] = found["prompt_fidelity_after"] - found["prompt_fidelity_before"]
    asked = ~neutral
    if training is not None and asked.any():
        found |= both("likeness", *(likeness(each[asked], training) for each in (before, after)))
        found["likeness_change"] = found["likeness_after"] - found["likeness_before"]
    if before.shape[1] > 1:
        shown = asked if asked.any() else neutral
        found |= both("diversity", *(spread(each[shown]) for each in (before, after)))
        found["diversity_ratio"] = found["diversity_after"] / max(found["diversity_before"], 1e-9)
    if neutral.sum() > 1:
        found["neutral_drift"] = drift(before[neutral], after[neutral])
    return found


def both(name: str, before: float, after: float) -> Mapping[str, float]:
    return {f"{name}_before": before, f"{name}_after": after}


def similarity(pictures: Tensor, prompts: Tensor) -> float:
    """Mean cosine of each picture and its own prompt."""
    return float((pictures * prompts[:, None]).sum(-1).mean())


def fidelity(pictures: Tensor, prompts: Tensor) -> float:
    """The share of pictures that are liker to their own prompt than to any other that was asked.

    Of a style that an encoder has never seen it is unsure throughout, and similarities fall; which prompt is the
    likeliest it can say all the same.
    """
    found = pictures @ prompts.T
    own = (pictures * prompts[:, None]).sum(-1)
    return float((own >= found.amax(-1) - 1e-6).double().mean())


def likeness(pictures: Tensor, training: Tensor) -> float:
    """Mean cosine of the pictures and the middle of the training pictures."""
    return float((pictures @ F.normalize(training.mean(0), dim=-1)).mean())


def spread(pictures: Tensor) -> float:
    """Mean distance, 1 - cosine, of two pictures of one prompt."""
    seeds = pictures.shape[1]
    cosines = pictures @ pictures.mT
    same = cosines.diagonal(dim1=1, dim2=2).sum(-1)
    return float((1 - (cosines.sum((1, 2)) - same) / (seeds * (seeds - 1))).mean())


def drift(before: Tensor, after: Tensor) -> float:
    """How far the second model's pictures are from the first one's of the same prompt and seed, as a share of what
    another prompt changes: 0 is the same pictures, 1 is as if other things had been asked for."""
    moved = 1 - (before * after).sum(-1).mean()
    middles = before.mean(1)
    others = ~torch.eye(len(middles), dtype=torch.bool)
    usual = 1 - (middles @ middles.T)[others].mean()
    return float(moved / usual.clamp(min=1e-9))
