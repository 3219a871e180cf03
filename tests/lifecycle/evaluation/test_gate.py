"""A verdict passes only metrics that were measured and are within their bounds."""

from pathlib import Path

import pytest

from safelight.errors import InvalidRequest
from safelight.lifecycle.evaluation.gate import DEFAULT_POLICY, judge_report, read_policy

GOOD = {
    "prompt_fidelity_change": 0.0, "likeness_change": 0.1, "diversity_ratio": 0.9,
    "neutral_drift": 0.1, "copies": 0.0, "membership_auc": 0.5,
}  # fmt: skip


def test_a_report_within_all_bounds_passes() -> None:
    assert judge_report(DEFAULT_POLICY, GOOD).passed


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("copies", 0.2, "copies is 0.2, and must be at most 0.05"),
        ("diversity_ratio", 0.1, "diversity_ratio is 0.1, and must be at least 0.7"),
        ("neutral_drift", float("nan"), "neutral_drift is not a number"),
    ],
)
def test_a_refusal_names_the_metric_and_its_bound(name: str, value: float, why: str) -> None:
    verdict = judge_report(DEFAULT_POLICY, GOOD | {name: value})
    assert not verdict.passed
    assert verdict.reasons == (why,)


def test_an_unmeasured_metric_does_not_pass() -> None:
    assert judge_report(DEFAULT_POLICY, {}).reasons == tuple(f"{name} was not measured" for name in GOOD)


def test_a_policy_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[metrics.copies]\nmax = 0.5\n")
    assert judge_report(read_policy(path), {"copies": 0.2}).passed
    path.write_text("[metrics.copies]\nmaximum = 0.5\n")
    with pytest.raises(InvalidRequest, match="maximum"):
        read_policy(path)
    path.write_text("metrics: copies")
    with pytest.raises(InvalidRequest, match="no TOML"):
        read_policy(path)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_policy(tmp_path / "none.toml")
