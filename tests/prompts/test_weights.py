import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import InvalidRequest
from safelight.prompts.weights import MAX_WEIGHT, Break, Weighted, parse

BREAK = "BREAK"
"""Stands for a break in the tables below; the word itself never remains as text."""

# The first six are AUTOMATIC1111's own examples.
DOCUMENTED = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
    "": [],
    "  spaces stay  ": [("  spaces stay  ", 1.0)],
    "((word))": [("word", 1.21)],
    "[word]": [("word", 1 / 1.1)],
    "[[word]]": [("word", 1 / 1.21)],
    "[(word)]": [("word", 1.0)],
    "((a:2) b:3)": [("a", 6.0), (" b", 3.0)],
    "(word: 1.2 )": [("word", 1.2)],
    "(word:+1.2)": [("word", 1.2)],
    "(word:-0.5)": [("word", -0.5)],
    "(word:0)": [("word", 0.0)],
    "(word:.5)": [("word", 0.5)],
    "[word:1.2]": [("word:1.2", 1 / 1.1)],  # square brackets take no number
    "(a:b:1.2)": [("a:b", 1.2)],
    "ratio 16:9": [("ratio 16:9", 1.0)],
    "word:1.2)": [("word:1.2)", 1.0)],  # never opened: text
    "a) b] c": [("a) b] c", 1.0)],
    "(a (b": [("a ", 1.1), ("b", 1.21)],  # never closed: to the end
    "[a [b": [("a ", 1 / 1.1), ("b", 1 / 1.21)],
    "(a [b) c]": [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)],  # round and square may cross
    "()": [],
    "(:1.2)": [],
    "(a:1.2": [("a:1.2", 1.1)],
    r"back\\slash": [(r"back\slash", 1.0)],
    r"lone\slash\\": [("loneslash\\", 1.0)],
    r"\(a:1.2\)": [("(a:1.2)", 1.0)],
    r"(\(a\):1.5)": [("(a)", 1.5)],
    "(a:1e2)": [("a:1e2", 1.1)],  # as there: not a number in this grammar
    "a BREAK b": [("a", 1.0), BREAK, ("b", 1.0)],
    "a BREAK BREAK b": [("a", 1.0), BREAK, BREAK, ("b", 1.0)],
    "BREAK": [BREAK],
    "BREAK a BREAK": [BREAK, ("a", 1.0), BREAK],
    "BREAKING a_BREAK break": [("BREAKING a_BREAK break", 1.0)],
    "(a BREAK b:1.3)": [("a", 1.3), BREAK, ("b", 1.3)],
    "a, \n BREAK\n(b)": [("a,", 1.0), BREAK, ("b", 1.1)],
}


@pytest.mark.parametrize("prompt", DOCUMENTED)
def test_the_grammar_is_automatic1111s(prompt: str) -> None:
    expected = DOCUMENTED[prompt]
    found = [BREAK if isinstance(piece, Break) else (piece.text, piece.weight) for piece in parse(prompt)]
    assert [piece if piece == BREAK else piece[0] for piece in found] == [
        piece if piece == BREAK else piece[0] for piece in expected
    ]
    for one, other in zip(found, expected, strict=True):
        if other != BREAK:
            assert one[1] == pytest.approx(other[1], rel=1e-12)  # products taken in another order


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("(cat:nan)", "'nan' is not a weight"),
        ("(cat:inf)", "'inf' is not a weight"),
        ("(cat:-Infinity)", "'-Infinity' is not a weight"),
        ("(cat:1.2.3)", "'1.2.3' is not a weight"),
        ("(cat:.)", "'.' is not a weight"),
        ("(cat:" + "9" * 400 + ")", "is not a weight"),
        ("(cat:101)", "the weight of 'cat' is 101; at most 100"),
        ("(cat:-1000)", "the weight of 'cat' is -1e+03"),
        ("(" * 60 + "cat", "the weight of 'cat' is 304"),
        ("(" * 100_000 + "cat", "the weight of 'cat' is inf"),
    ],
)
def test_an_invalid_weight_is_refused_with_its_text(prompt: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        parse(prompt)


@given(st.text().filter(lambda text: "BREAK" not in text))
def test_an_escaped_text_is_read_as_it_was(text: str) -> None:
    escaped = re.sub(r"([\\()\[\]])", r"\\\1", text)
    assert parse(escaped) == ((Weighted(text, 1.0),) if text else ())


FRAGMENTS = ["a", "b ", "(", ")", "[", "]", ":", ":1.5)", ":0.5)", "\\", "\\(", "BREAK", " BREAK "]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30))
def test_any_prompt_is_read_as_by_multiplying_every_pair_of_brackets(fragments: list[str]) -> None:
    """The obvious way, in square time: each bracket, when it closes, multiplies all that stands since it opened."""
    prompt = "".join(fragments)
    flat: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for token in re.findall(r"\\[\\()\[\]]?|[(\[]|:[\d.]+\)|[)\]]|[^\\()\[\]:]+|:", prompt):
        if token in "([":
            opened[token].append(len(flat))
        elif token[-1] in ")]" and token[0] != "\\" and opened[")(]["[")(][".index(token[-1]) + 1]]:
            factor = float(token[1:-1]) if token[0] == ":" else {")": 1.1, "]": 1 / 1.1}[token]
            for piece in flat[opened["(" if token[-1] == ")" else "["].pop() :]:
                piece[1] *= factor
        elif token[0] == "\\":
            flat.append([token[1:], 1.0])
        else:
            flat += [[part, 1.0] for part in re.split(r"\s*\b(BREAK)\b\s*", token) if part]
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        for start in opened[bracket]:
            for piece in flat[start:]:
                piece[1] *= factor

    # By character, so that merging does not matter.
    wanted = [(unit, weight) for text, weight in flat for unit in ([BREAK] if text == BREAK else text)]
    found: list[tuple[str, float]] = []
    for piece in parse(prompt):
        found += [(BREAK, 1.0)] if isinstance(piece, Break) else [(char, piece.weight) for char in piece.text]
    assert [unit for unit, _ in found] == [unit for unit, _ in wanted]
    for (unit, weight), (_, expected) in zip(found, wanted, strict=True):
        assert unit == BREAK or weight == pytest.approx(expected, rel=1e-9)  # products taken in another order


@given(st.text(alphabet="ab ()[]:\\.19", max_size=60))
def test_neighbours_differ_in_weight_and_none_is_empty_or_beyond_bounds(prompt: str) -> None:
    try:
        pieces = parse(prompt)
    except InvalidRequest:
        return
    weights = [piece.weight for piece in pieces if isinstance(piece, Weighted)]
    assert all(piece.text for piece in pieces if isinstance(piece, Weighted))
    assert all(one != other for one, other in pairwise(weights))
    assert all(abs(weight) <= MAX_WEIGHT for weight in weights)


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * 50_000 + ")" * 50_000,
        "[" * 50_000 + "a" + "]" * 50_000,
        "(a:1.1) [b] " * 8_000,
        ")]" * 50_000,
        ":" * 100_000,
        "\\" * 100_001,
        "(" + ":" + " " * 100_000 + "x",
        "(" + ":1" * 50_000,
        "(:" + "1" * 100_000,
        " " * 100_000 + "x",
        "BREAK" + " " * 100_000 + "BREAK",
        "BREAK " * 20_000,
        "\\(" * 50_000,
    ],
    ids=range(13),
)
def test_a_hostile_prompt_takes_linear_time(prompt: str) -> None:
    start = time.process_time()
    parse(prompt)
    assert time.process_time() - start < 5  # about 0.3 s; anything quadratic takes minutes
