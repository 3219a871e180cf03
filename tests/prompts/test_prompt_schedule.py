"""AUTOMATIC1111's grammar of time and of AND, from the table in `prompt_cases.toml`."""

import time
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import InvalidRequest
from safelight.prompts.prompt_schedule import MAX_CHANGES, MAX_PARTS, Part, parts_of, unroll
from safelight.prompts.weights import Break, parse

CASES: dict[str, list[dict[str, Any]]] = tomllib.loads((Path(__file__).parent / "prompt_cases.toml").read_text("utf-8"))


def named(kind: str) -> list[Any]:
    return [pytest.param(case, id=f"{case['prompt']!r} {case.get('second', '')}") for case in CASES[kind]]


def test_the_table_is_as_long_as_promised() -> None:
    assert sum(map(len, CASES.values())) >= 80
    prompts = [(kind, case["prompt"], case.get("second")) for kind, cases in CASES.items() for case in cases]
    assert len(set(prompts)) == len(prompts), "a case stands there twice"


@pytest.mark.parametrize("case", named("schedule"))
def test_each_step_has_the_prompt_of_automatic1111(case: dict[str, Any]) -> None:
    passes = [case.get("steps", 10), *([case["second"]] if "second" in case else [])]
    prompts = unroll(case["prompt"], passes)
    changes = [0, *(step for step, (one, other) in enumerate(pairwise(prompts), 1) if one != other), len(prompts)]
    assert [[until, prompts[until - 1]] for until in changes[1:]] == case["told"]


@pytest.mark.parametrize("case", named("join"))
def test_and_combines_as_in_automatic1111(case: dict[str, Any]) -> None:
    assert parts_of(case["prompt"]) == tuple(Part(text, weight) for text, weight in case["parts"])


@pytest.mark.parametrize("case", named("weigh"))
def test_weights_are_read_as_in_automatic1111(case: dict[str, Any]) -> None:
    pieces = [
        ("BREAK", 0.0) if isinstance(piece, Break) else (piece.text, piece.weight) for piece in parse(case["prompt"])
    ]
    assert [text for text, _ in pieces] == [text for text, _ in case["pieces"]]
    # The table has nine digits.
    assert [weight for _, weight in pieces] == pytest.approx([weight for _, weight in case["pieces"]], rel=1e-8)


@given(st.text(alphabet="ab |:[]()\\.13", max_size=40), st.integers(1, 9), st.one_of(st.none(), st.integers(1, 5)))
def test_any_prompt_gives_a_prompt_for_every_step(prompt: str, first: int, second: int | None) -> None:
    passes = [first] if second is None else [first, second]
    prompts = unroll(prompt, passes)
    assert len(prompts) == sum(passes)
    if "[" not in prompt:
        assert set(prompts) == {prompt}
    # Nothing is made up: each step's words are the prompt's characters, in order, with some left out.
    for text in prompts:
        rest = iter(prompt)
        assert all(character in rest for character in text)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=5), st.integers(1, 12))
def test_options_alternate_by_step(options: list[str], steps: int) -> None:
    assert unroll(f"[{'|'.join(options)}]", [steps]) == tuple(options[step % len(options)] for step in range(steps))


@given(st.integers(-3, 15), st.integers(1, 12), st.integers(1, 5))
def test_a_switch_counts_on_through_the_second_pass(when: int, first: int, second: int) -> None:
    before = min(max(when, 0), first + second)
    assert unroll(f"[a:b:{when}]", [first, second]) == ("a",) * before + ("b",) * (first + second - before)


def test_a_prompt_that_changes_too_often_is_refused() -> None:
    unroll("[a:b:1]" * MAX_CHANGES, [10])
    with pytest.raises(InvalidRequest, match=f"{MAX_CHANGES + 1} changes between steps; at most {MAX_CHANGES}"):
        unroll("[a:b:1]" * (MAX_CHANGES + 1), [10])
    options = "|".join(f"w{number}" for number in range(MAX_CHANGES + 1))
    assert len(set(unroll(f"[{options}]", [MAX_CHANGES]))) == MAX_CHANGES
    with pytest.raises(InvalidRequest, match="101 different prompts over the steps"):
        unroll(f"[{options}]", [1000])


def test_and_is_bounded_in_number_and_weight() -> None:
    assert len(parts_of(" AND ".join(["a"] * MAX_PARTS))) == MAX_PARTS
    with pytest.raises(InvalidRequest, match=f"joins {MAX_PARTS + 1} prompts; at most {MAX_PARTS}"):
        parts_of(" AND ".join(["a"] * (MAX_PARTS + 1)))
    with pytest.raises(InvalidRequest, match="a weight of AND is 1e\\+03; at most 100"):
        parts_of("a AND b :1000")


@pytest.mark.parametrize(
    "prompt",
    [
        "[" * 20_000,
        "[" * 10_000 + "a" + "]" * 10_000,
        "[" * 6_000 + "a:b:3" + "]" * 6_000,
        "(" * 6_000 + "[a|b]" + ")" * 6_000,
        "[a" * 7_000,
        "[a:" * 6_000 + "3]" * 100,
        "([a](b)[c]" * 2_000,
        "[" + "a:" * 9_000 + "3]",
        "[x:" + "9" * 19_000 + "]",
        "[x:" + " " * 19_000 + "3",
        "\\" * 19_999,
        "[a|b" * 5_000,
        "a :" + " " * 19_000 + "AND b",
        "a" + ":1" * 9_000 + " AND b",
    ],
    ids=range(14),
)
def test_a_hostile_prompt_takes_linear_time(prompt: str) -> None:
    start = time.process_time()
    for part in parts_of(prompt):
        unroll(part.text, [30, 20])
    assert time.process_time() - start < 5  # about 0.3 s; anything quadratic takes minutes
