#!/usr/bin/env bash
# opacus 1.6.0: the epsilon of its PRV accountant, which is documented as an upper bound, is below the exact one where
# there are many steps, much noise and no subsampling.
#
# Steps at a sample rate of 1 are one Gaussian mechanism of noise sigma / sqrt(steps), whose epsilon has a closed form
# (Balle and Wang, arXiv:1805.06530). Expected: prv at or a little above it; rdp above both.
# Seen: sigma 300, 100 000 steps, delta 1e-12: prv 7.53, exact 7.67, rdp above.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "opacus==1.6.0" "scipy==1.17.0"
"$folder/venv/bin/python" -W ignore - <<'PY'
import math

from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr

sigma, steps, delta = 300.0, 100_000, 1e-12


def exact() -> float:
    mu = math.sqrt(steps) / sigma

    def over(epsilon: float) -> float:
        first = log_ndtr(mu / 2 - epsilon / mu)
        second = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return first + math.log1p(-math.exp(second - first)) - math.log(delta)

    return brentq(over, 1e-6, 100)


def told(accountant) -> float:
    accountant.history = [(sigma, 1.0, steps)]
    return accountant.get_epsilon(delta=delta)


prv, rdp, truth = told(PRVAccountant()), told(RDPAccountant()), exact()
print(f"sigma {sigma:g}, {steps} steps, delta {delta:g}: prv {prv:.3f}, exact {truth:.3f}, rdp {rdp:.3f}")
assert rdp >= truth, "rdp is an upper bound"
assert prv < truth - 0.05, "changed: prv is no longer below the exact value"
print("as seen: prv is below the exact value")
PY
