"""The privacy guarantee of a DP-SGD run, by Opacus' accountants.

rdp   Renyi orders (arXiv:1908.10530): an upper bound; the noise for a requested epsilon is chosen by it
prv   convolved privacy losses (arXiv:2106.02848): a tighter bound, where its sums in float64 are accurate enough
"""

import warnings
from collections.abc import Sequence
from typing import Any

from safelight.errors import InvalidRequest

Spent = tuple[float, float, int]
"""Noise multiplier, sampling rate, number of steps: the history format of Opacus' accountants."""
LARGE_ORDERS = (128, 256, 512, 1024)
"""In addition to Opacus' own orders, which end at 63: without them no noise at all reaches an epsilon of 0.1."""
PRV_ERROR = 1e-14
"""Error of delta per step by rounding in prv's sums, with a safety factor of 100 (against the closed form)."""
PRV_MAX = 500.0
"""For larger epsilons, exp overflows inside prv, and its result is too small."""


def noise_for(*, epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise multiplier that gives this guarantee, by rdp.

    Raises:
        InvalidRequest: no noise multiplier does.
    """
    from opacus.accountants import RDPAccountant  # pyright: ignore[reportMissingImports]
    from opacus.accountants.utils import get_noise_multiplier  # pyright: ignore[reportMissingImports]

    with ignore_warnings():
        try:
            sigma = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=min(0.01, epsilon / 100),
                alphas=[*RDPAccountant.DEFAULT_ALPHAS, *LARGE_ORDERS],
            )
        except ValueError:
            raise InvalidRequest(
                f"dp_epsilon {epsilon:g} at dp_delta {delta:g} cannot be reached over {steps} steps that each use "
                f"{rate:.0%} of the pictures; use a larger dp_epsilon or dp_delta, fewer steps, or a smaller batch"
            ) from None
    return float(sigma)


def privacy_guarantee(spent: Sequence[Spent], delta: float) -> dict[str, Any]:
    """The epsilon of these steps, the accountant it is from, and rdp's epsilon; both are upper bounds."""
    by_rdp = epsilon_rdp(spent, delta) if spent else 0.0
    by_prv = epsilon_prv(spent, delta, by_rdp=by_rdp) if spent else 0.0
    return {
        "epsilon": by_rdp if by_prv is None else by_prv,
        "accountant": "rdp" if by_prv is None else "prv",
        "epsilon_rdp": by_rdp,
        "delta": delta,
    }


def epsilon_rdp(spent: Sequence[Spent], delta: float) -> float:
    from opacus.accountants import RDPAccountant  # pyright: ignore[reportMissingImports]

    accountant: Any = RDPAccountant()
    accountant.history = list(spent)
    with ignore_warnings():
        return float(accountant.get_epsilon(delta, alphas=[*RDPAccountant.DEFAULT_ALPHAS, *LARGE_ORDERS]))


def epsilon_prv(spent: Sequence[Spent], delta: float, *, by_rdp: float) -> float | None:
    """prv's epsilon to within 1 %; None if it is inaccurate, or no tighter than rdp's."""
    if by_rdp > PRV_MAX or delta < PRV_ERROR * sum(steps for *_, steps in spent):
        return None
    from opacus.accountants import PRVAccountant  # pyright: ignore[reportMissingImports]

    accountant: Any = PRVAccountant()
    accountant.history = list(spent)
    with ignore_warnings():
        try:
            epsilon = float(accountant.get_epsilon(delta, eps_error=max(by_rdp / 100, 0.001)))
        except (RuntimeError, ValueError):  # it checks its own sums, and raises where they disagree
            return None
    return max(0.0, epsilon) if epsilon <= by_rdp else None


def ignore_warnings() -> Any:
    """Opacus warns where its bound could be tighter, and where it takes the logarithm of 0; the bound holds."""
    return warnings.catch_warnings(action="ignore")
