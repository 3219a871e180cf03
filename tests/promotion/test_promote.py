"""Aliases move to what passed, or what somebody answers for; and back."""

from pathlib import Path

import pytest
from tests.registry.files import write_lora

from safelight.database.connect import Database
from safelight.errors import InvalidRequest
from safelight.evaluation.gate import Verdict
from safelight.promotion.promote import promote, roll_back
from safelight.registry.registry import Registry

PASSED, FAILED = Verdict(True, ()), Verdict(False, ("copies is 0.2, and must be at most 0.05",))


@pytest.fixture
def registry(database: Database, home: Path, tmp_path: Path) -> Registry:
    """With ink@1, ink@2 and ink@3."""
    registry = Registry(database, home)
    for seed in (1, 2, 3):
        registry.add(write_lora(tmp_path / "ink.safetensors", seed=seed))
    return registry


def production(registry: Registry) -> str:
    return registry.resolve("ink@production").reference


def test_what_passed_is_pointed_to_and_what_did_not_is_refused_with_the_reasons(registry: Registry) -> None:
    turn = promote(registry, registry.resolve("ink@1"), "production", PASSED, report="abc")
    assert turn.reason == "passed; report abc"
    with pytest.raises(InvalidRequest, match=r"ink@2 does not become ink@production: copies is 0.2.*--override"):
        promote(registry, registry.resolve("ink@2"), "production", FAILED, report="abd")
    assert production(registry) == "ink@1"


def test_an_override_is_recorded_with_what_spoke_against_it(registry: Registry) -> None:
    promote(registry, registry.resolve("ink@2"), "production", FAILED, report="abd", override="ticket 512")
    assert production(registry) == "ink@2"
    [turn] = registry.history("ink", "production")
    assert turn.reason == "overridden: ticket 512 (against: copies is 0.2, and must be at most 0.05); report abd"
    assert turn.by


def test_rolling_back_goes_one_version_further_back_each_time(registry: Registry) -> None:
    for number in (1, 2, 3):
        promote(registry, registry.resolve(f"ink@{number}"), "production", PASSED, report="abc")
    turn = roll_back(registry, "ink", "production", why="complaints")
    assert (turn.to, turn.reason) == ("ink@2", "rolled back from ink@3: complaints")
    assert roll_back(registry, "ink", "production").to == "ink@1"
    with pytest.raises(InvalidRequest, match="it points to ink@1 and never pointed elsewhere"):
        roll_back(registry, "ink", "production")


def test_after_a_rollback_a_new_version_can_be_rolled_back_too(registry: Registry) -> None:
    for number in (1, 2):
        promote(registry, registry.resolve(f"ink@{number}"), "production", PASSED, report="abc")
    roll_back(registry, "ink", "production")
    promote(registry, registry.resolve("ink@3"), "production", PASSED, report="abc")
    assert roll_back(registry, "ink", "production").to == "ink@1"


def test_an_alias_that_never_was_cannot_be_rolled_back(registry: Registry) -> None:
    with pytest.raises(InvalidRequest, match="there is no such alias"):
        roll_back(registry, "ink", "staging")
