"""AUTOMATIC1111's attention syntax: weights of parts of a prompt.

| written | means |
|---|---|
| `(word)` `[word]` | weight times 1.1, divided by 1.1; nesting multiplies |
| `(word:1.2)` | weight times 1.2; only round brackets take a number |
| `\\(` `\\)` `\\[` `\\]` `\\\\` | the character itself; any other backslash is dropped |
| `BREAK` | what follows starts a new chunk of tokens |

As in AUTOMATIC1111, an unclosed bracket extends to the end, an unopened one is text, and round and square brackets may
cross. Unlike there, `BREAK` also works inside brackets, and `(word:nan)` is an error. Changes by step (`[a:b:0.5]`,
`[a|b]`) and `AND` are resolved before (`prompt_schedule.py`); any that remain here are text.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from safelight.errors import InvalidRequest

FACTORS = {"(": 1.1, "[": 1 / 1.1}
OPENERS = {")": "(", "]": "["}
MAX_WEIGHT = 100.0
"""Far above any useful weight (2 is already strong), far below a float16 overflow."""

# Possessive quantifiers: a hostile prompt must not cause backtracking.
TOKEN = re.compile(
    r"""
      \\(?P<escaped>[\\()\[\]]?)
    | (?P<open>[(\[])
    | (?P<weighted>:\s*+(?P<number>[+-]?(?:[.\d]++|(?i:nan|inf(?:inity)?)))\s*+\))
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]++|:)
    """,
    re.VERBOSE,
)
BREAK_WORD = re.compile(r"\bBREAK\b")


@dataclass(frozen=True, slots=True)
class Weighted:
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Break:
    """The end of a chunk."""


def parse(prompt: str) -> tuple[Weighted | Break, ...]:
    """Return the prompt's texts in order, with neighbours of equal weight merged.

    Raises:
        InvalidRequest: a weight that is not a number, or beyond `MAX_WEIGHT`.
    """
    tokens = list(TOKEN.finditer(prompt))
    factors, closing = match_brackets(tokens)
    stacks = {"(": [1.0], "[": [1.0]}
    """The products of the factors of open brackets; two stacks, since round and square brackets may cross."""
    pieces: list[Weighted | Break] = []
    for token in tokens:
        start = token.start()
        if start in factors:
            stack = stacks[token[0]]
            stack.append(stack[-1] * factors[start])
        elif start in closing:
            stacks[OPENERS[token[0][-1]]].pop()
        else:
            weight = stacks["("][-1] * stacks["["][-1]
            text = token["escaped"] if token.lastgroup == "escaped" else token[0]
            pieces += split_breaks(text, weight) if token.lastgroup == "text" else [Weighted(text, weight)]
    return merge(pieces)


def match_brackets(tokens: Iterable[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Return the factor of each opening bracket, and the closing brackets with a partner, by position."""
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}
    factors: dict[int, float] = {}
    closing: set[int] = set()
    for token in tokens:
        if token.lastgroup == "open":
            open_brackets[token[0]].append(token.start())
            factors[token.start()] = FACTORS[token[0]]
        elif token.lastgroup in ("close", "weighted") and (partners := open_brackets[OPENERS[token[0][-1]]]):
            closing.add(token.start())
            partner = partners.pop()
            if token.lastgroup == "weighted":
                factors[partner] = read_weight(token["number"])
    return factors, closing


def read_weight(number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise InvalidRequest(f"prompt: {number[:20]!r} is not a weight; write a number, as in (word:1.2)")
    return weight


def split_breaks(text: str, weight: float) -> list[Weighted | Break]:
    """Split `a BREAK b` into `a`, a break, and `b`, without the spaces around BREAK."""
    first, *others = BREAK_WORD.split(text)
    pieces: list[Weighted | Break] = [Weighted(first.rstrip() if others else first, weight)]
    for position, part in enumerate(others, 1):
        last = position == len(others)
        pieces += [Break(), Weighted(part.lstrip() if last else part.strip(), weight)]
    return pieces


def merge(pieces: Iterable[Weighted | Break]) -> tuple[Weighted | Break, ...]:
    merged: list[Weighted | Break] = []
    texts: list[str] = []
    weight = 1.0

    def flush() -> None:
        if texts:
            merged.append(Weighted("".join(texts), weight))
            texts.clear()

    for piece in pieces:
        if isinstance(piece, Break):
            flush()
            merged.append(piece)
        elif piece.text:
            if not abs(piece.weight) <= MAX_WEIGHT:  # in this form, nan is refused too
                excerpt = piece.text.strip()[:40]
                raise InvalidRequest(f"prompt: the weight of {excerpt!r} is {piece.weight:.3g}; at most {MAX_WEIGHT:g}")
            if piece.weight != weight:
                flush()
                weight = piece.weight
            texts.append(piece.text)
    flush()
    return tuple(merged)
