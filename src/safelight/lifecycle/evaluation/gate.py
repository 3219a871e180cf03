"""Decide whether a model may be promoted: a policy of bounds, a report of metrics, and a verdict with its reasons.

    policy.toml, report -> judge_report -> Verdict(passed, reasons)

The verdict depends on its two arguments only, so that a refusal can be repeated. A metric that the policy bounds and
the report lacks is a reason to refuse.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safelight.errors import InvalidRequest
from safelight.validation import explain

Threshold = Annotated[float, Field(allow_inf_nan=False)]


class Bound(BaseModel):
    """The bounds of one metric: `min`, `max`, or both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Threshold | None = None
    max: Threshold | None = None


class Policy(BaseModel):
    """The bounds, by the metric's name in a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[str, Bound]


DEFAULT_POLICY = Policy(
    metrics={
        "prompt_fidelity_change": Bound(min=-0.15),  # follows prompts about as well as the model it was made from
        "likeness_change": Bound(min=-0.02),  # pictures are at least as similar to the training pictures
        "diversity_ratio": Bound(min=0.7),  # pictures of one prompt still differ
        "neutral_drift": Bound(max=0.3),  # neutral prompts are drawn about as before
        "copies": Bound(max=0.05),  # share of samples nearer to a training picture than real pictures are
        "membership_auc": Bound(max=0.75),  # how well losses distinguish training pictures from others
    }
)
"""The policy used when none is given; docs/promotion.md has the measurements behind it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    reasons: tuple[str, ...]
    """Reasons for refusal; empty if it passed."""


def judge_report(policy: Policy, report: Mapping[str, float]) -> Verdict:
    """Check every bounded metric of the report."""
    reasons: list[str] = []
    for name, bound in policy.metrics.items():
        value = report.get(name)
        if value is None:
            reasons.append(f"{name} was not measured")
        elif math.isnan(value):
            reasons.append(f"{name} is not a number")
        elif bound.min is not None and value < bound.min:
            reasons.append(f"{name} is {value:.3g}, and must be at least {bound.min:g}")
        elif bound.max is not None and value > bound.max:
            reasons.append(f"{name} is {value:.3g}, and must be at most {bound.max:g}")
    return Verdict(not reasons, tuple(reasons))


def read_policy(path: Path | None) -> Policy:
    """The policy in a TOML file, `[metrics.copies]` with `max = 0.05` for instance; the default one without a file.

    Raises:
        InvalidRequest: the file is missing, is not TOML, or is not a valid policy.
    """
    if path is None:
        return DEFAULT_POLICY
    try:
        return Policy.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise InvalidRequest(f"{path}: {explain(error, [*Policy.model_fields, *Bound.model_fields])}") from None
    except ValueError as error:
        raise InvalidRequest(f"{path} is not TOML: {error}") from None
