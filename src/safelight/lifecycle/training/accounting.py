"""What a run of DP-SGD has promised, by Opacus' accountants.

rdp   Renyi orders (arXiv:1908.10530): never less than the truth; the noise for a wished epsilon is chosen by it
prv   convolved privacy losses (arXiv:2106.02848): nearer to the truth, where its sums in float64 can be trusted
"""

import warnings
from collections.abc import Sequence
from typing import Any

from safelight.errors import InvalidRequest

Spent = tuple[float, float, int]
"""Noise multiplier, sampling rate, how many steps: as Opacus' accountants keep it."""
LARGE_ORDERS = (128, 256, 512, 1024)
"""Beside Opacus' own, which end at 63: without these no noise whatever keeps to an epsilon of 0.1."""
PRV_ERROR = 1e-14
"""Of delta, each step: what rounding may do to prv's sums, with a hundred times to spare (against the closed form)."""
PRV_MAX = 500.0
"""Larger epsilons are past what exp can hold on the way, and come out too small."""


def noise_for(*, epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise multiplier that keeps to this promise, by rdp.

    Raises:
        InvalidRequest: none does.
    """
    from opacus.accountants import RDPAccountant  # pyright: ignore[reportMissingImports]
    from opacus.accountants.utils import get_noise_multiplier  # pyright: ignore[reportMissingImports]

    with quiet():
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
                f"dp_epsilon {epsilon:g} at dp_delta {delta:g} cannot be kept over {steps} steps that each show "
                f"{rate:.0%} of the pictures; take a larger dp_epsilon or dp_delta, fewer steps, or a smaller batch"
            ) from None
    return float(sigma)


def promise(spent: Sequence[Spent], delta: float) -> dict[str, Any]:
    """The epsilon of these steps, whose it is, and rdp's beside it; both are upper bounds."""
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
    with quiet():
        return float(accountant.get_epsilon(delta, alphas=[*RDPAccountant.DEFAULT_ALPHAS, *LARGE_ORDERS]))


def epsilon_prv(spent: Sequence[Spent], delta: float, *, by_rdp: float) -> float | None:
    """To one in a hundred; None where it cannot be trusted, or has nothing to add."""
    if by_rdp > PRV_MAX or delta < PRV_ERROR * sum(steps for *_, steps in spent):
        return None
    from opacus.accountants import PRVAccountant  # pyright: ignore[reportMissingImports]

    accountant: Any = PRVAccountant()
    accountant.history = list(spent)
    with quiet():
        try:
            epsilon = float(accountant.get_epsilon(delta, eps_error=max(by_rdp / 100, 0.001)))
        except (RuntimeError, ValueError):  # it checks its own sums, and gives up where they do not meet
            return None
    return max(0.0, epsilon) if epsilon <= by_rdp else None


def quiet() -> Any:
    """Opacus warns where its bound could be tighter, and where it takes the logarithm of 0; the bound holds."""
    return warnings.catch_warnings(action="ignore")
