"""Prompts that change while they are drawn, and prompts that are joined: AUTOMATIC1111's grammar of time.

| written | means |
|---|---|
| `[from:to:when]` | `from` up to step `when`, then `to` |
| `[to:when]` `[from::when]` | nothing, then `to`; `from`, then nothing |
| `[a\\|b\\|c]` | `a` in the first step, `b` in the second, `c` in the third, `a` in the fourth |
| `one AND two :0.5` | two prompts, each with a say in every step; the second with half the weight |

`when` with a point in it is a fraction of the steps, without one it counts steps. The second pass of highres goes on
counting: its steps come after those of the first pass, its fractions lie between 1.0 and 2.0. What is in brackets may
hold brackets of any kind, as long as they are in pairs. What does not fit is text, as there: a `[` that has no partner,
brackets with too many colons. A `|` outside of `[a|b]` makes all of the prompt text.

Weights such as `(word:1.2)` and `BREAK` pass through untouched; `prompts.parse` reads them afterwards, step by step.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from safelight.errors import InvalidRequest

MAX_CHANGES = 100
"""Places in a prompt where it changes, and prompts it may become: a bound on work and memory."""
MAX_PARTS = 16
"""Prompts joined by AND; each is a row in every network call."""
MAX_AND_WEIGHT = 100.0

# Possessive quantifiers, as in `prompts`: a hostile prompt must not make a pattern try again and again.
TOKEN = re.compile(r"(?:[^\\\[\]():|]|\\.)++|[\[\]():|]")
NUMBER = re.compile(r"\s*+([+-]?(?:\d++\.?\d*+|\.\d++)(?:[eE][+-]?\d++)?)\s*+")
CLOSERS = {"(": ")", "[": "]"}
AND = re.compile(r"\bAND\b")
AND_WEIGHT = re.compile(r":\s*+([+-]?(?:\d++\.?\d*+|\.\d++))\s*+\Z")


@dataclass(frozen=True, slots=True)
class Switch:
    """`[before:after:when]`."""

    before: "Node"
    after: "Node"
    when: str

    def last_step(self, walk: int, walks: Sequence[int]) -> int:
        """The last step of that walk, counted from 1, in which `before` is told."""
        steps, number = walks[walk], float(self.when)
        within = (number - walk) * steps if "." in self.when else number - sum(walks[:walk])
        return int(max(0.0, min(within, steps)))


@dataclass(frozen=True, slots=True)
class Alternate:
    options: tuple["Node", ...]


Node: TypeAlias = "str | Switch | Alternate | tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Part:
    """One of the prompts that AND joins, and how much it counts."""

    words: str
    weight: float


def parts_of(prompt: str) -> tuple[Part, ...]:
    """The prompts that AND joins; a prompt without the word is one part, as it is.

    Raises:
        InvalidRequest: too many parts, or a weight beyond reason.
    """
    first, *others = AND.split(prompt)
    if not others:
        return (Part(prompt, 1.0),)
    if len(others) >= MAX_PARTS:
        raise InvalidRequest(f"prompt: AND joins {len(others) + 1} prompts; at most {MAX_PARTS}")
    return tuple(weighted(words) for words in (first, *others))


def weighted(words: str) -> Part:
    found = AND_WEIGHT.search(words)
    if not found:
        return Part(words.rstrip(), 1.0)
    weight = float(found[1])
    if not abs(weight) <= MAX_AND_WEIGHT:
        raise InvalidRequest(f"prompt: a weight of AND is {weight:.3g}; at most {MAX_AND_WEIGHT:g}")
    return Part(words[: found.start()].rstrip(), weight)


def unroll(prompt: str, walks: Sequence[int]) -> tuple[str, ...]:
    """What the prompt says in each step, one walk after the other; `walks` are their numbers of steps.

    Raises:
        InvalidRequest: it changes more often than there is room for.
    """
    tree = read(prompt) if "[" in prompt else None
    if tree is None or not (changes := changes_in(tree)):
        return (prompt,) * sum(walks)
    if len(changes) > MAX_CHANGES:
        raise InvalidRequest(f"prompt: it changes in {len(changes)} places; at most {MAX_CHANGES}")
    told = tuple(
        words_in(tree, step, walk=walk, walks=walks) for walk, steps in enumerate(walks) for step in range(1, steps + 1)
    )
    if len(set(told)) > MAX_CHANGES:
        raise InvalidRequest(f"prompt: it becomes {len(set(told))} different prompts; at most {MAX_CHANGES}")
    return told


def words_in(tree: Node, step: int, *, walk: int, walks: Sequence[int]) -> str:
    """The words of one step, counted from 1. Without recursion: brackets may nest ten thousand deep."""
    words: list[str] = []
    ahead = [tree]
    while ahead:
        match ahead.pop():
            case str() as text:
                words.append(text)
            case Switch() as switch:
                ahead.append(switch.before if step <= switch.last_step(walk, walks) else switch.after)
            case Alternate(options):
                ahead.append(options[(step - 1) % len(options)])
            case nodes:
                ahead.extend(reversed(nodes))
    return "".join(words)


def changes_in(tree: Node) -> list[Switch | Alternate]:
    found: list[Switch | Alternate] = []
    ahead = [tree]
    while ahead:
        match ahead.pop():
            case str():
                pass
            case Switch() as switch:
                found.append(switch)
                ahead += [switch.before, switch.after]
            case Alternate(options) as alternate:
                found.append(alternate)
                ahead += options
            case nodes:
                ahead += nodes
    return found


def read(prompt: str) -> "Node | None":
    """The prompt as a tree; None where it has no such reading, and is text from end to end."""
    tokens = [token[0] for token in TOKEN.finditer(prompt)]
    if sum(map(len, tokens)) < len(prompt):  # a backslash with nothing behind it
        return None
    pairs: dict[int, tuple[Node, int]] = {}
    """By the place of an opening bracket: what it and all up to its partner mean, and where the text goes on."""
    # From the right, so that what is inside has been read before what is around it: linear time, no recursion.
    for place in reversed(range(len(tokens))):
        if tokens[place] in CLOSERS and (pair := read_pair(tokens, place, pairs)):
            pairs[place] = pair

    nodes: list[Node] = []
    place = 0
    while place < len(tokens):
        if tokens[place] == "|":
            return None
        node, place = pairs.get(place, (tokens[place], place + 1))
        nodes.append(node)
    return joined(nodes)


def read_pair(tokens: Sequence[str], start: int, pairs: dict[int, tuple[Node, int]]) -> tuple[Node, int] | None:
    """The brackets that open at `start`, or None where they have no meaning together."""
    opener = tokens[start]
    fields: list[list[Node]] = [[]]
    separators: set[str] = set()
    place = start + 1
    while place < len(tokens) and tokens[place] not in CLOSERS.values():
        token = tokens[place]
        if token in CLOSERS:
            if place not in pairs:
                return None
            node, place = pairs[place]
            fields[-1].append(node)
            continue
        if token in ":|":
            separators.add(token)
            fields.append([])
        else:
            fields[-1].append(token)
        place += 1
    if place == len(tokens) or tokens[place] != CLOSERS[opener]:
        return None
    node = meaning_of(opener, [joined(field) for field in fields], separators)
    return None if node is None else (node, place + 1)


def meaning_of(opener: str, fields: Sequence[Node], separators: set[str]) -> "Node | None":
    """What brackets with these fields between their colons or bars stand for."""
    if not separators:
        return joined([opener, fields[0], CLOSERS[opener]])
    if opener == "(":
        return joined(["(", fields[0], ":", fields[1], ")"]) if separators == {":"} and len(fields) == 2 else None
    if separators == {"|"}:
        return Alternate(tuple(fields))
    when = fields[-1]
    if separators != {":"} or len(fields) > 3 or not isinstance(when, str) or not (number := NUMBER.fullmatch(when)):
        return None
    before = fields[0] if len(fields) == 3 else ""
    return Switch(before, fields[-2], number[1])


def joined(nodes: Sequence[Node]) -> Node:
    """Nodes in a row, as one; texts become one text, so that weights alone make no tree."""
    texts = [node for node in nodes if isinstance(node, str)]
    return "".join(texts) if len(texts) == len(nodes) else tuple(nodes)
