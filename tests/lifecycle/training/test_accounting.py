"""The recorded privacy guarantee, against Opacus' own functions and the closed form."""

import math
from contextlib import suppress
from itertools import pairwise

import pytest
import torch

from safelight.errors import InvalidRequest
from safelight.lifecycle.training.accounting import PRV_ERROR, noise_for, promise, quiet

with suppress(ModuleNotFoundError):
    from opacus.accountants import PRVAccountant, RDPAccountant, create_accountant
    from opacus.accountants.utils import get_noise_multiplier

pytestmark = pytest.mark.needs("opacus")


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Of a Gaussian whose mean moves by mu deviations (arXiv:1905.02383, corollary 2.13): exact where all are shown."""
    low, high = 0.0, mu * mu + 20 * mu
    for _ in range(80):
        epsilon = (low + high) / 2
        ends = torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
        first, second = torch.special.log_ndtr(ends).tolist()
        low, high = (epsilon, high) if math.exp(first) - math.exp(epsilon + second) > delta else (low, epsilon)
    return high


@pytest.mark.parametrize(
    ("sigma", "steps", "delta"),
    [(5, 1, 1e-5), (20, 100, 1e-5), (20, 1000, 1e-9), (100, 10_000, 1e-5), (2, 10, 1e-6), (0.6, 3, 1e-3)],
)
def test_both_accountants_are_upper_bounds_and_prv_is_tight(sigma: float, steps: int, delta: float) -> None:
    truth = gaussian_epsilon(math.sqrt(steps) / sigma, delta)
    said = promise([(sigma, 1.0, steps)], delta)
    assert said["accountant"] == "prv"
    assert truth <= said["epsilon"] <= 1.02 * truth, "an error of 1 % is allowed to prv, either side"
    assert said["epsilon"] < said["epsilon_rdp"] < 1.2 * truth


def opacus_holds(sigma: float, steps: int, delta: float, truth: float) -> bool:
    accountant = PRVAccountant()
    accountant.history = [(sigma, 1.0, steps)]
    try:
        return bool(accountant.get_epsilon(delta) >= truth)
    except (RuntimeError, ValueError):
        return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("sigma", "steps", "delta"), [(100, 10_000, 1e-13), (0.025, 1, 1e-5), (20, 100, 1e-15)])
def test_rdp_is_reported_where_prv_is_below_the_truth_or_fails(sigma: float, steps: int, delta: float) -> None:
    truth = gaussian_epsilon(math.sqrt(steps) / sigma, delta)
    assert not opacus_holds(sigma, steps, delta, truth), "of Opacus 1.6.0; the limits can be moved where it holds"
    said = promise([(sigma, 1.0, steps)], delta)
    assert said["accountant"] == "rdp"
    assert truth <= said["epsilon"] == said["epsilon_rdp"]


@pytest.mark.filterwarnings("ignore")
def test_the_numbers_are_opacus_own() -> None:
    history = [(1.1, 0.01, 300), (1.3, 0.02, 200)]
    said = promise(history, 1e-5)
    rdp, prv = (create_accountant(mechanism=name) for name in ("rdp", "prv"))
    for accountant in (rdp, prv):
        for sigma, rate, steps in history:
            for _ in range(steps):
                accountant.step(noise_multiplier=sigma, sample_rate=rate)
    assert rdp.history == prv.history == history
    assert said["epsilon_rdp"] == pytest.approx(rdp.get_epsilon(1e-5), rel=1e-9)
    assert said["epsilon"] == pytest.approx(prv.get_epsilon(1e-5), abs=0.02), "twice Opacus' own eps_error"
    assert said["accountant"] == "prv"


def test_the_noise_multiplier_is_opacus_own_and_meets_the_requested_epsilon() -> None:
    sigma = noise_for(epsilon=4.0, delta=1e-5, rate=0.064, steps=1000)
    theirs = get_noise_multiplier(
        target_epsilon=4.0, target_delta=1e-5, sample_rate=0.064, steps=1000, accountant="rdp"
    )
    assert sigma == theirs
    said = promise([(sigma, 0.064, 1000)], 1e-5)
    assert said["epsilon"] < said["epsilon_rdp"] <= 4.0
    assert said["epsilon_rdp"] > 3.98


@pytest.mark.parametrize("epsilon", [0.05, 0.1])
def test_small_epsilons_can_be_reached(epsilon: float) -> None:
    """By Opacus' orders alone, no noise whatever does: "The privacy budget is too low"."""
    accountant = RDPAccountant()
    accountant.history = [(1e6, 0.01, 100)]
    with quiet():
        assert accountant.get_epsilon(1e-5) > 0.1
    sigma = noise_for(epsilon=epsilon, delta=1e-5, rate=0.01, steps=100)
    assert 0.95 * epsilon < promise([(sigma, 0.01, 100)], 1e-5)["epsilon_rdp"] <= epsilon


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"dp_epsilon 0\.001 at dp_delta 1e-15 cannot be reached over 1 steps"):
        noise_for(epsilon=0.001, delta=1e-15, rate=0.2, steps=1)


def test_more_steps_give_a_larger_epsilon() -> None:
    told = [promise([(1.2, 0.02, steps)] if steps else [], 1e-5) for steps in (0, 10, 100, 1000)]
    assert told[0]["epsilon"] == told[0]["epsilon_rdp"] == 0
    for one, other in pairwise(told):
        assert one["epsilon"] < other["epsilon"]
    assert PRV_ERROR * 1000 < 1e-5
