"""The noise of private training: Gaussian by every measure, and from the system's randomness."""

import math
import os

import pytest
import torch

from safelight.lifecycle.training import secret_noise
from safelight.lifecycle.training.secret_noise import secret_gaussians

COUNT = 200_000


def test_the_noise_has_a_gaussians_mean_deviation_and_shape() -> None:
    """Each bound is passed by chance less than once in a million runs."""
    drawn = secret_gaussians(COUNT)
    assert drawn.dtype == torch.float64
    assert abs(float(drawn.mean())) < 5 / math.sqrt(COUNT)
    assert abs(float(drawn.std()) - 1) < 5 / math.sqrt(2 * COUNT)
    assert abs(float((drawn**4).mean()) - 3) < 5 * math.sqrt(96 / COUNT)
    # Kolmogorov-Smirnov: past 2.7 with the chance 2 exp(-2 * 2.7^2), one in a million.
    true = torch.special.ndtr(drawn.sort().values)
    steps = torch.arange(COUNT + 1, dtype=torch.float64) / COUNT
    farthest = float(torch.maximum((steps[1:] - true).max(), (true - steps[:-1]).max()))
    assert farthest < 2.7 / math.sqrt(COUNT)


def test_the_two_numbers_of_a_pair_are_independent() -> None:
    halves = secret_gaussians(COUNT).view(2, -1)
    for one, other in (halves, halves.square() - 1):
        scale = float((one * other).std())
        assert abs(float((one * other).mean())) < 5 * scale / math.sqrt(COUNT / 2)


def test_extreme_bits_give_finite_numbers_up_to_the_documented_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_noise.os, "urandom", lambda count: b"\0" * count)
    assert float(secret_gaussians(2)[0]) == pytest.approx(math.sqrt(2 * 65 * math.log(2)))
    monkeypatch.setattr(secret_noise.os, "urandom", lambda count: b"\xff" * count)
    assert secret_gaussians(3).isfinite().all()


def test_seeds_do_not_affect_it() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(secret_gaussians(64))
    assert not set(draws[0].tolist()) & set(draws[1].tolist())


def test_it_does_not_advance_other_generators() -> None:
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    secret_gaussians(64)
    assert torch.equal(torch.randn(4), expected)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_each_number_costs_the_system_64_bits(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    system = os.urandom
    monkeypatch.setattr(secret_noise.os, "urandom", lambda size: asked.append(size) or system(size))
    assert len(secret_gaussians(count)) == count
    assert sum(asked) >= 8 * count


def test_all_of_the_systems_bits_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that this mends: of 64 bits that were drawn, 32 were heeded."""
    other = [b"\0" * place + b"\x10" + b"\0" * (15 - place) for place in range(2, 16)]
    given = iter([b"\x01" * 16, *(bytes(a ^ b for a, b in zip(b"\x01" * 16, change, strict=True)) for change in other)])
    monkeypatch.setattr(secret_noise.os, "urandom", lambda _size: next(given))
    drawn = {tuple(secret_gaussians(2).tolist()) for _ in range(1 + len(other))}
    assert len(drawn) == 1 + len(other)
