"""AUTOMATIC1111's attention grammar: which words count for how much.

| written | means |
|---|---|
| `(word)` `[word]` | weight times 1.1, divided by 1.1; nesting multiplies |
| `(word:1.2)` | weight times 1.2; only round brackets take a number |
| `\\(` `\\)` `\\[` `\\]` `\\\\` | the character itself; any other backslash is dropped |
| `BREAK` | what follows starts a new chunk of tokens |

As there, a bracket that is never closed reaches to the end, one that was never opened is text, and round and
square brackets may cross. Unlike there, `BREAK` keeps its meaning inside brackets, and `(word:nan)` is an error.
What changes by step (`[a:b:0.5]`, `[a|b]`) and `AND` have been taken out before (`prompt_schedule.py`); what is left of
them here is text.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from safelight.errors import InvalidRequest

FACTORS = {"(": 1.1, "[": 1 / 1.1}
OPENERS = {")": "(", "]": "["}
MAX_WEIGHT = 100.0
"""Far above what any model bears (2 is already strong), far below what overflows float16."""

# Possessive quantifiers: a hostile prompt must not make the pattern try again and again.
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
    """The chunk ends here."""


def parse(prompt: str) -> tuple[Weighted | Break, ...]:
    """The prompt's texts in order, neighbours of equal weight merged; a prompt without brackets comes back whole.

    Raises:
        InvalidRequest: a weight that is no number, or beyond `MAX_WEIGHT`.
    """
    tokens = list(TOKEN.finditer(prompt))
    factors, closing = match_brackets(tokens)
    inside = {"(": [1.0], "[": [1.0]}
    """The product of the brackets open at this point; two stacks, since round and square may cross."""
    pieces: list[Weighted | Break] = []
    for token in tokens:
        start = token.start()
        if start in factors:
            stack = inside[token[0]]
            stack.append(stack[-1] * factors[start])
        elif start in closing:
            inside[OPENERS[token[0][-1]]].pop()
        else:
            weight = inside["("][-1] * inside["["][-1]
            text = token["escaped"] if token.lastgroup == "escaped" else token[0]
            pieces += break_up(text, weight) if token.lastgroup == "text" else [Weighted(text, weight)]
    return merge(pieces)


def match_brackets(tokens: Iterable[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """The factor of each opening bracket, and the closing ones that have a partner, by position."""
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    factors: dict[int, float] = {}
    closing: set[int] = set()
    for token in tokens:
        if token.lastgroup == "open":
            waiting[token[0]].append(token.start())
            factors[token.start()] = FACTORS[token[0]]
        elif token.lastgroup in ("close", "weighted") and (partners := waiting[OPENERS[token[0][-1]]]):
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


def break_up(text: str, weight: float) -> list[Weighted | Break]:
    """`a BREAK b` is `a`, a break, and `b`, without the spaces around the word."""
    first, *others = BREAK_WORD.split(text)
    pieces: list[Weighted | Break] = [Weighted(first.rstrip() if others else first, weight)]
    for position, part in enumerate(others, 1):
        last = position == len(others)
        pieces += [Break(), Weighted(part.lstrip() if last else part.strip(), weight)]
    return pieces


def merge(pieces: Iterable[Weighted | Break]) -> tuple[Weighted | Break, ...]:
    merged: list[Weighted | Break] = []
    run: list[str] = []
    weight = 1.0

    def close_run() -> None:
        if run:
            merged.append(Weighted("".join(run), weight))
            run.clear()

    for piece in pieces:
        if isinstance(piece, Break):
            close_run()
            merged.append(piece)
        elif piece.text:
            if not abs(piece.weight) <= MAX_WEIGHT:  # so written, it also catches nan
                excerpt = piece.text.strip()[:40]
                raise InvalidRequest(f"prompt: the weight of {excerpt!r} is {piece.weight:.3g}; at most {MAX_WEIGHT:g}")
            if piece.weight != weight:
                close_run()
                weight = piece.weight
            run.append(piece.text)
    close_run()
    return tuple(merged)
