"""The tests of memorisation find copies, and only copies."""

import pytest
import torch

from safelight.lifecycle.evaluation.memorisation import auc_interval, find_neighbours, in_words, membership_auc


def test_copies_are_found_and_named_and_fresh_samples_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    training, held_out, fresh = (torch.randn(n, 8, generator=generator) for n in (100, 100, 100))
    copied = find_neighbours(training[[3, 7]] + 1e-3, training, held_out)
    assert copied.nearest == [3, 7]
    assert copied.share == 1
    # Fresh samples are as the held-out ones: one in twenty is expected, three standard deviations more are allowed.
    assert find_neighbours(fresh, training, held_out).share <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5 * 2**0.5


def test_the_area_under_the_curve_counts_pairs() -> None:
    assert membership_auc(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])) == 1
    assert membership_auc(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])) == 0.5
    assert membership_auc(torch.tensor([1.0]), torch.tensor([1.0, 2.0])) == pytest.approx(0.75)


def test_the_description_depends_on_the_area() -> None:
    assert "cannot" in in_words(0.5)
    assert "nearly always" in in_words(0.99)


def test_without_held_out_pictures_training_pictures_are_compared_with_each_other() -> None:
    training = torch.eye(4)  # each as far from the next as any
    near, far = training[:1] + 0.1, torch.full((1, 4), 5.0)
    assert find_neighbours(torch.cat([near, far]), training, None).copies == [0]


def test_the_interval_holds_the_area_and_shrinks_with_more_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    members, others = torch.randn(400, generator=generator), torch.randn(400, generator=generator) + 1
    low, high = auc_interval(members, others)
    assert low < membership_auc(members, others) < high
    few = auc_interval(members[:20], others[:20])
    assert high - low < (few[1] - few[0]) / 2
