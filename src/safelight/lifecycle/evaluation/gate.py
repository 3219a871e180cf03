"""May this model go where it is wanted? A policy of thresholds, a report of numbers, and a verdict with its reasons.

    policy.toml, report -> judge_report -> Verdict(passed, reasons)

A function of its two arguments and of nothing else, so that a refusal can be looked up and repeated. A number that
the policy asks for and the report lacks is a reason to refuse: what was not measured has not passed.
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
    """What one number must be: `min`, `max`, or both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Threshold | None = None
    max: Threshold | None = None


class Policy(BaseModel):
    """The bounds, by the name of the number in a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[str, Bound]


DEFAULT_POLICY = Policy(
    metrics={
        "prompt_fidelity_change": Bound(min=-0.15),  # obeys prompts about as well as the model it came from
        "likeness_change": Bound(min=-0.02),  # pictures have come nearer to what it was to learn
        "diversity_ratio": Bound(min=0.7),  # of one prompt, pictures still differ
        "neutral_drift": Bound(max=0.3),  # prompts that do not ask for what is new are drawn as before
        "copies": Bound(max=0.05),  # the share of pictures that are nearer to a training picture than real ones are
        "membership_auc": Bound(max=0.75),  # how well training pictures can be told from others by their loss
    }
)
"""What is asked of a model where nobody wrote a policy; docs/promotion.md has what it was measured on."""


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    reasons: tuple[str, ...]
    """Why not; empty if it passed."""


def judge_report(policy: Policy, report: Mapping[str, float]) -> Verdict:
    """Whether every number is within its bounds."""
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
        InvalidRequest: the file is missing, is no TOML, or says what no policy can.
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
        raise InvalidRequest(f"{path} is no TOML: {error}") from None
