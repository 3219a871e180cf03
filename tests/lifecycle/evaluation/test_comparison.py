"""Numbers of two models, from vectors whose answers are known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.lifecycle.evaluation.comparison import compare_pictures

AXES = torch.eye(4)
"""Four prompts that have nothing in common; the last two are neutral."""
NEUTRAL = torch.tensor([False, False, True, True])
ALL = torch.ones(4, dtype=torch.bool)


def drawn(noise: float, *, seed: int = 0, seeds: int = 8, axes: Tensor = AXES) -> Tensor:
    """Pictures that show their prompt, each differently by so much."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(axes[:, None] + noise * torch.randn(len(axes), seeds, 4, generator=generator), dim=-1)


def compared(before: Tensor, after: Tensor, training: Tensor | None = None) -> dict[str, float]:
    return compare_pictures(before, after, neutral=NEUTRAL, prompts=AXES, judged=ALL, training=training)


def test_identical_pictures_give_zero_changes() -> None:
    found = compared(drawn(0.1), drawn(0.1))
    assert found["prompt_fidelity_change"] == 0
    assert found["prompt_fidelity_after"] == 1
    assert found["diversity_ratio"] == pytest.approx(1)
    assert found["neutral_drift"] == pytest.approx(0, abs=1e-6)


def test_a_model_that_draws_other_things_has_drift_and_low_fidelity() -> None:
    found = compared(drawn(0.1), drawn(0.1, axes=AXES.roll(1, dims=0)))
    assert found["prompt_fidelity_change"] == -1
    assert found["neutral_drift"] == pytest.approx(1, abs=0.1)


def test_one_picture_for_all_seeds_has_zero_diversity() -> None:
    one = drawn(0.1)[:, :1].expand(-1, 8, -1)
    assert compared(drawn(0.1), one)["diversity_ratio"] == pytest.approx(0, abs=1e-5)


def test_likeness_is_to_the_training_pictures() -> None:
    learnt = F.normalize(AXES[0] + AXES[1], dim=-1)
    nearer = F.normalize(AXES + learnt * (~NEUTRAL)[:, None], dim=-1)
    found = compared(drawn(0.1), drawn(0.1, axes=nearer), learnt[None])
    assert found["likeness_change"] > 0.1
    assert "likeness_change" not in compared(drawn(0.1), drawn(0.1))


def test_prompts_unknown_to_the_encoder_are_not_judged() -> None:
    pictures = drawn(0.1)
    none = torch.zeros(4, dtype=torch.bool)
    found = compare_pictures(pictures, pictures, neutral=NEUTRAL, prompts=AXES, judged=none, training=None)
    assert "prompt_fidelity_change" not in found
