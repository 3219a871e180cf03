"""Aliases move to versions that passed or were overridden, and back."""

from pathlib import Path

import pytest
from tests.models.registry.files import write_lora

from safelight.database.connect import Database
from safelight.errors import InvalidRequest
from safelight.lifecycle.evaluation.gate import Bound, Policy
from safelight.lifecycle.promotion.promote import promote, roll_back
from safelight.lifecycle.promotion.report import Report
from safelight.models.registry.registry import Registry

POLICY = Policy(metrics={"copies": Bound(max=0.05)})


def report(copies: float, digest: str = "abc") -> Report:
    numbers = {"copies": copies}
    return Report(digest=digest, before="mini", after="ink", eyes="mine", made="today", numbers=numbers, words=[])


GOOD, BAD = report(0.0), report(0.2, "abd")


@pytest.fixture
def registry(database: Database, home: Path, tmp_path: Path) -> Registry:
    """With ink@1, ink@2 and ink@3."""
    registry = Registry(database, home)
    for seed in (1, 2, 3):
        registry.add(write_lora(tmp_path / "ink.safetensors", seed=seed))
    return registry


def production(registry: Registry) -> str:
    return registry.resolve("ink@production").reference


def test_a_version_that_passed_is_promoted_and_one_that_did_not_is_refused_with_the_reasons(registry: Registry) -> None:
    turn = promote(registry, registry.resolve("ink@1"), "production", GOOD, POLICY)
    assert turn.reason == "passed; report abc"
    with pytest.raises(InvalidRequest, match=r"ink@2 was not promoted to ink@production: copies is 0.2.*--override"):
        promote(registry, registry.resolve("ink@2"), "production", BAD, POLICY)
    assert production(registry) == "ink@1"


def test_an_override_is_recorded_with_the_reasons_against_it(registry: Registry) -> None:
    promote(registry, registry.resolve("ink@2"), "production", BAD, POLICY, override="ticket 512")
    assert production(registry) == "ink@2"
    [turn] = registry.history("ink", "production")
    assert turn.reason == "overridden: ticket 512 (against: copies is 0.2, and must be at most 0.05); report abd"
    assert turn.by
    assert turn.gate is not None
    assert turn.gate["numbers"] == {"copies": 0.2}
    assert turn.gate["policy"] == {"copies": {"max": 0.05}}
    assert turn.gate["reasons"] == ["copies is 0.2, and must be at most 0.05"]
    assert turn.gate["passed"] is False


def test_the_history_of_a_name_is_newest_first_and_only_promotions_have_a_gate(
    registry: Registry,
) -> None:
    registry.point("ink", "candidate", 2, reason="added")
    promote(registry, registry.resolve("ink@2"), "production", GOOD, POLICY)
    registry.add(write_lora(registry.storage.folder.parent / "other.safetensors", seed=4), name="other")
    registry.point("other", "production", 1)
    told = [(turn.alias, turn.gate is not None) for turn in registry.moves_of("ink")]
    assert told == [("ink@production", True), ("ink@candidate", False)]


def test_rolling_back_goes_one_version_further_back_each_time(registry: Registry) -> None:
    for number in (1, 2, 3):
        promote(registry, registry.resolve(f"ink@{number}"), "production", GOOD, POLICY)
    turn = roll_back(registry, "ink", "production", why="complaints")
    assert (turn.to, turn.reason) == ("ink@2", "rolled back from ink@3: complaints")
    assert roll_back(registry, "ink", "production").to == "ink@1"
    with pytest.raises(InvalidRequest, match="it points to ink@1 and has no earlier version"):
        roll_back(registry, "ink", "production")


def test_after_a_rollback_a_new_version_can_be_rolled_back_too(registry: Registry) -> None:
    for number in (1, 2):
        promote(registry, registry.resolve(f"ink@{number}"), "production", GOOD, POLICY)
    roll_back(registry, "ink", "production")
    promote(registry, registry.resolve("ink@3"), "production", GOOD, POLICY)
    assert roll_back(registry, "ink", "production").to == "ink@1"


def test_an_alias_that_never_was_cannot_be_rolled_back(registry: Registry) -> None:
    with pytest.raises(InvalidRequest, match="there is no such alias"):
        roll_back(registry, "ink", "staging")
