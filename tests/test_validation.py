"""All errors of a body at once, by the caller's names of its fields."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ConfigDict, Field, ValidationError

from safelight.errors import InvalidField, InvalidFields, SafelightError, UnknownSampler, UnsupportedOption
from safelight.validation import (
    CheckedModel,
    default_field,
    errors_in,
    explain,
    gather_all,
    one_letter_off,
    refuse,
    rename_fields,
    to_invalid_fields,
)


class Part(CheckedModel):
    model_config = ConfigDict(extra="forbid")
    low: int = 0
    high: int = 1

    def clashes(self) -> Iterator[SafelightError]:
        if self.low >= self.high:
            yield InvalidField("low", f"{self.low} must be below high {self.high}", "high")


class Whole(CheckedModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    steps: int = Field(default=1, ge=1)
    sampler: str = "Euler"
    part: Part = Part()

    def clashes(self) -> Iterator[SafelightError]:
        if self.sampler != "Euler":
            yield UnknownSampler(self.sampler, ["Euler"])
        if self.steps == 13:
            yield UnsupportedOption("steps", "13 is bad luck")


class Tolerant(Whole):
    model_config = ConfigDict(extra="ignore")


def errors_of(kind: type[CheckedModel], values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(values)
    return explain(caught.value, ())


def test_errors_of_fields_names_and_conflicts_are_reported_together() -> None:
    message = errors_of(Whole, {"steps": 0, "smapler": "x", "sampler": "Eulr", "part": {"low": 5, "hihg": 3}})
    for part in (
        "name: is needed",
        "steps: Input should be greater than or equal to 1 (got 0)",
        "smapler: no such field; did you mean 'sampler'",
        "no sampler named 'Eulr'",
        "part.hihg: no such field; did you mean 'high'?",
        "part.low: 5 must be below high 1",
    ):
        assert part in message
    assert "bad luck" not in message


def test_a_conflict_with_an_invalid_field_is_not_reported() -> None:
    assert "below" not in errors_of(Part, {"low": 5, "high": "x"})


def test_bodies_that_ignore_unknown_fields_still_report_misspelt_names() -> None:
    assert Tolerant.model_validate({"name": "x", "cfg": 1, "stage": None, "step": None}).steps == 1
    assert errors_of(Tolerant, {"name": "x", "step": 3}) == "step: no such field; did you mean 'steps'?"


@pytest.mark.parametrize(
    ("one", "other", "slip"),
    [
        ("step", "steps", True),
        ("setps", "steps", True),
        ("steps", "stepz", True),
        ("promptt", "prompt", True),
        ("rpompt", "prompt", True),
        ("steps", "steps", True),
        ("spets", "steps", False),
        ("sampler", "sampler_name", False),
        ("n", "m", False),
        ("hr_cfg", "cfg_scale", False),
    ],
)
def test_a_misspelt_name_is_one_letter_off(one: str, other: str, slip: bool) -> None:
    assert one_letter_off(one, other) == slip


def test_a_single_error_is_returned_itself_and_several_share_a_status() -> None:
    for values, kind, status in (
        ({"name": "x", "sampler": "Eulr"}, UnknownSampler, 404),
        ({"name": "x", "steps": 13}, UnsupportedOption, 400),
        ({"name": "x", "steps": 0}, InvalidField, 422),
        ({"name": "x", "steps": 13, "sampler": "Eulr"}, InvalidFields, 400),
        ({"name": "x", "steps": 0, "sampler": "Eulr"}, InvalidFields, 422),
    ):
        with pytest.raises(ValidationError) as caught:
            Whole.model_validate(values)
        error = to_invalid_fields(caught.value.errors(), status=422).simplified()
        assert (type(error), error.status) == (kind, status)
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"name": 3})
    with pytest.raises(InvalidField, match=r"^name: .*string"):
        refuse(caught.value)


def test_a_dialect_renames_fields_in_errors() -> None:
    words = {"steps": "num_steps", "part": "piece", "part.low": "bottom"}
    wrong = list(errors_in(Whole, {"name": "x", "steps": 0, "part": {"low": "a", "high": "b"}}, words))
    assert [error.param for error in wrong] == ["num_steps", "bottom", "piece.high"]
    assert str(wrong[1]).startswith("bottom: ")
    with pytest.raises(InvalidField, match=r"^num_steps: few$"), rename_fields(words):
        raise InvalidField("steps", "few")
    with pytest.raises(UnknownSampler) as caught, rename_fields({"sampler": "sampler_name"}), default_field("body"):
        raise UnknownSampler("x", [])
    assert caught.value.param == "sampler_name"


def test_gather_all_raises_all_errors_at_once() -> None:
    async def fine() -> int:
        return 3

    async def wrong(field: str) -> str:
        raise InvalidField(field, "no")

    async def ask() -> None:
        assert await gather_all(fine(), fine(), fine()) == (3, 3, 3)
        with pytest.raises(InvalidFields, match="a: no; b: no"):
            await gather_all(wrong("a"), fine(), wrong("b"))

    asyncio.run(ask())
