"""Every fault of a body at once, by the caller's names for its fields."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ConfigDict, Field, ValidationError

from safelight.errors import InvalidField, InvalidFields, SafelightError, UnknownSampler, UnsupportedOption
from safelight.validation import (
    CheckedModel,
    concerning,
    explain,
    faults_in,
    in_words,
    one_letter_off,
    refuse,
    together,
    wrong_in,
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


def said(kind: type[CheckedModel], values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(values)
    return explain(caught.value, ())


def test_faults_of_fields_of_names_and_between_fields_come_together() -> None:
    message = said(Whole, {"steps": 0, "smapler": "x", "sampler": "Eulr", "part": {"low": 5, "hihg": 3}})
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


def test_a_clash_with_a_field_that_is_wrong_anyway_is_not_told() -> None:
    assert "below" not in said(Part, {"low": 5, "high": "x"})


def test_bodies_that_may_hold_fields_of_others_still_know_a_slip() -> None:
    assert Tolerant.model_validate({"name": "x", "cfg": 1, "stage": None, "step": None}).steps == 1
    assert said(Tolerant, {"name": "x", "step": 3}) == "step: no such field; did you mean 'steps'?"


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
def test_a_slip_is_one_letter(one: str, other: str, slip: bool) -> None:
    assert one_letter_off(one, other) == slip


def test_one_fault_is_itself_and_several_share_a_status() -> None:
    for values, kind, status in (
        ({"name": "x", "sampler": "Eulr"}, UnknownSampler, 404),
        ({"name": "x", "steps": 13}, UnsupportedOption, 400),
        ({"name": "x", "steps": 0}, InvalidField, 422),
        ({"name": "x", "steps": 13, "sampler": "Eulr"}, InvalidFields, 400),
        ({"name": "x", "steps": 0, "sampler": "Eulr"}, InvalidFields, 422),
    ):
        with pytest.raises(ValidationError) as caught:
            Whole.model_validate(values)
        error = faults_in(caught.value.errors(), status=422).alone()
        assert (type(error), error.status) == (kind, status)
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"name": 3})
    with pytest.raises(InvalidField, match=r"^name: .*string"):
        refuse(caught.value)


def test_a_dialect_has_its_own_words() -> None:
    words = {"steps": "num_steps", "part": "piece", "part.low": "bottom"}
    wrong = list(wrong_in(Whole, {"name": "x", "steps": 0, "part": {"low": "a", "high": "b"}}, words))
    assert [error.param for error in wrong] == ["num_steps", "bottom", "piece.high"]
    assert str(wrong[1]).startswith("bottom: ")
    with pytest.raises(InvalidField, match=r"^num_steps: few$"), in_words(words):
        raise InvalidField("steps", "few")
    with pytest.raises(UnknownSampler) as caught, in_words({"sampler": "sampler_name"}), concerning("body"):
        raise UnknownSampler("x", [])
    assert caught.value.param == "sampler_name"


def test_what_is_asked_together_is_refused_together() -> None:
    async def fine() -> int:
        return 3

    async def wrong(field: str) -> str:
        raise InvalidField(field, "no")

    async def ask() -> None:
        assert await together(fine(), fine(), fine()) == (3, 3, 3)
        with pytest.raises(InvalidFields, match="a: no; b: no"):
            await together(wrong("a"), fine(), wrong("b"))

    asyncio.run(ask())
