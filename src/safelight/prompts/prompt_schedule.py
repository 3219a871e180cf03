"""Prompts that change during sampling, and prompts combined by AND: AUTOMATIC1111's prompt editing.

| written | means |
|---|---|
| `[from:to:when]` | `from` up to step `when`, then `to` |
| `[to:when]` `[from::when]` | nothing, then `to`; `from`, then nothing |
| `[a\\|b\\|c]` | `a` in the first step, `b` in the second, `c` in the third, `a` in the fourth |
| `one AND two :0.5` | two prompts that both act in every step; the second with half the weight |

`when` with a decimal point is a fraction of the steps, without one a step number. In the second pass of highres,
steps are counted on from the first pass, and fractions lie between 1.0 and 2.0. Brackets may contain balanced brackets
of any kind. As in AUTOMATIC1111, anything else is text: a `[` without a partner, brackets with too many colons. A `|`
outside of `[a|b]` makes the whole prompt text.

Weights such as `(word:1.2)` and `BREAK` are left as they are; `weights.parse` reads them afterwards, for each step.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from safelight.errors import InvalidRequest

MAX_CHANGES = 100
"""Maximum number of changes in a prompt, and of different prompts that result: bounds work and memory."""
MAX_PARTS = 16
"""Maximum number of prompts combined by AND; each is a row in every network call."""
MAX_AND_WEIGHT = 100.0

# Possessive quantifiers, as in `weights.py`: a hostile prompt must not cause backtracking.
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

    def last_step(self, pass_index: int, passes: Sequence[int]) -> int:
        """Return the last step of that pass, counted from 1, in which `before` applies."""
        steps, number = passes[pass_index], float(self.when)
        step_in_pass = (number - pass_index) * steps if "." in self.when else number - sum(passes[:pass_index])
        return int(max(0.0, min(step_in_pass, steps)))


@dataclass(frozen=True, slots=True)
class Alternate:
    options: tuple["Node", ...]


Node: TypeAlias = "str | Switch | Alternate | tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Part:
    """One of the prompts combined by AND, and its weight."""

    text: str
    weight: float


def parts_of(prompt: str) -> tuple[Part, ...]:
    """Return the prompts combined by AND; a prompt without AND is returned unchanged as one part.

    Raises:
        InvalidRequest: more than `MAX_PARTS` parts, or a weight beyond `MAX_AND_WEIGHT`.
    """
    first, *others = AND.split(prompt)
    if not others:
        return (Part(prompt, 1.0),)
    if len(others) >= MAX_PARTS:
        raise InvalidRequest(f"prompt: AND joins {len(others) + 1} prompts; at most {MAX_PARTS}")
    return tuple(parse_part(text) for text in (first, *others))


def parse_part(text: str) -> Part:
    found = AND_WEIGHT.search(text)
    if not found:
        return Part(text.rstrip(), 1.0)
    weight = float(found[1])
    if not abs(weight) <= MAX_AND_WEIGHT:
        raise InvalidRequest(f"prompt: a weight of AND is {weight:.3g}; at most {MAX_AND_WEIGHT:g}")
    return Part(text[: found.start()].rstrip(), weight)


def unroll(prompt: str, passes: Sequence[int]) -> tuple[str, ...]:
    """Return the prompt of each step, one pass after the other; `passes` are their numbers of steps.

    Raises:
        InvalidRequest: more than `MAX_CHANGES` changes or different prompts.
    """
    tree = read(prompt) if "[" in prompt else None
    if tree is None or not (changes := find_changes(tree)):
        return (prompt,) * sum(passes)
    if len(changes) > MAX_CHANGES:
        raise InvalidRequest(f"prompt: {len(changes)} changes between steps; at most {MAX_CHANGES}")
    prompts = tuple(
        prompt_at(tree, step, pass_index=pass_index, passes=passes)
        for pass_index, steps in enumerate(passes)
        for step in range(1, steps + 1)
    )
    if len(set(prompts)) > MAX_CHANGES:
        raise InvalidRequest(f"prompt: {len(set(prompts))} different prompts over the steps; at most {MAX_CHANGES}")
    return prompts


def prompt_at(tree: Node, step: int, *, pass_index: int, passes: Sequence[int]) -> str:
    """Return the prompt of one step, counted from 1. Not recursive, as brackets may nest ten thousand deep."""
    pieces: list[str] = []
    stack = [tree]
    while stack:
        match stack.pop():
            case str() as text:
                pieces.append(text)
            case Switch() as switch:
                stack.append(switch.before if step <= switch.last_step(pass_index, passes) else switch.after)
            case Alternate(options):
                stack.append(options[(step - 1) % len(options)])
            case nodes:
                stack.extend(reversed(nodes))
    return "".join(pieces)


def find_changes(tree: Node) -> list[Switch | Alternate]:
    found: list[Switch | Alternate] = []
    stack = [tree]
    while stack:
        match stack.pop():
            case str():
                pass
            case Switch() as switch:
                found.append(switch)
                stack += [switch.before, switch.after]
            case Alternate(options) as alternate:
                found.append(alternate)
                stack += options
            case nodes:
                stack += nodes
    return found


def read(prompt: str) -> "Node | None":
    """Parse the prompt as a tree; None if it is not valid in this grammar, and so is text only."""
    tokens = [token[0] for token in TOKEN.finditer(prompt)]
    if sum(map(len, tokens)) < len(prompt):  # a backslash at the end
        return None
    pairs: dict[int, tuple[Node, int]] = {}
    """By the index of an opening bracket: the node up to its partner, and the index after it."""
    # From the right, so that inner brackets are parsed before outer ones: linear time, no recursion.
    for index in reversed(range(len(tokens))):
        if tokens[index] in CLOSERS and (pair := read_pair(tokens, index, pairs)):
            pairs[index] = pair

    nodes: list[Node] = []
    index = 0
    while index < len(tokens):
        if tokens[index] == "|":
            return None
        node, index = pairs.get(index, (tokens[index], index + 1))
        nodes.append(node)
    return merge_nodes(nodes)


def read_pair(tokens: Sequence[str], start: int, pairs: dict[int, tuple[Node, int]]) -> tuple[Node, int] | None:
    """Parse the brackets that open at `start`; None if they have no meaning."""
    opener = tokens[start]
    fields: list[list[Node]] = [[]]
    separators: set[str] = set()
    index = start + 1
    while index < len(tokens) and tokens[index] not in CLOSERS.values():
        token = tokens[index]
        if token in CLOSERS:
            if index not in pairs:
                return None
            node, index = pairs[index]
            fields[-1].append(node)
            continue
        if token in ":|":
            separators.add(token)
            fields.append([])
        else:
            fields[-1].append(token)
        index += 1
    if index == len(tokens) or tokens[index] != CLOSERS[opener]:
        return None
    node = node_for_brackets(opener, [merge_nodes(field) for field in fields], separators)
    return None if node is None else (node, index + 1)


def node_for_brackets(opener: str, fields: Sequence[Node], separators: set[str]) -> "Node | None":
    """Return the node for brackets with these fields between colons or bars; None if they have no meaning."""
    if not separators:
        return merge_nodes([opener, fields[0], CLOSERS[opener]])
    if opener == "(":
        return merge_nodes(["(", fields[0], ":", fields[1], ")"]) if separators == {":"} and len(fields) == 2 else None
    if separators == {"|"}:
        return Alternate(tuple(fields))
    when = fields[-1]
    if separators != {":"} or len(fields) > 3 or not isinstance(when, str) or not (number := NUMBER.fullmatch(when)):
        return None
    before = fields[0] if len(fields) == 3 else ""
    return Switch(before, fields[-2], number[1])


def merge_nodes(nodes: Sequence[Node]) -> Node:
    """Merge consecutive nodes; texts become one string, so that weights alone make no tree."""
    texts = [node for node in nodes if isinstance(node, str)]
    return "".join(texts) if len(texts) == len(nodes) else tuple(nodes)
