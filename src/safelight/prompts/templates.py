"""Prompts with choices in them, in the syntax of the Dynamic Prompts extension.

| written | means |
|---|---|
| `{red\\|green\\|blue}` | one of them |
| `{3::red\\|green}` | red three times as often |
| `{2$$a\\|b\\|c}` `{1-2$$a\\|b\\|c}` | two of them, one or two, with commas between |
| `{2$$ and $$a\\|b\\|c}` | with " and " between |
| `__colour__` | a line of the file colour.txt (`wildcards.py`) |

`draw` chooses by lot, `combinations` takes every choice. Square brackets keep their bars: `{[a|b]|c}` is one of
`[a|b]` and `c`. A backslash keeps the next character from having a meaning here.
"""

import math
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, permutations, product
from random import Random
from typing import TypeAlias

from safelight.errors import InvalidRequest
from safelight.prompts.wildcards import Wildcards

MAX_LENGTH = 20_000
"""Of the prompt that comes out, as long as a prompt may be."""
MAX_DEPTH = 10
"""Variants in variants, and wildcards in wildcards."""
MAX_TAKEN = 20
"""Options that one pair of braces may ask for."""
MAX_CHOICES = 1000
"""In one prompt: a bound on work."""

PIECE = re.compile(r"\\.?|__(?P<name>[\w\-./]+?)__|[{}|\[\]]|[^\\{}|\[\]_]++|_", re.DOTALL)
BOUNDS = re.compile(r"(?P<least>\d{1,4})?(?P<to>-)?(?P<most>\d{1,4})?\$\$(?:(?P<joiner>[^{}|$]*+)\$\$)?")
WEIGHT = re.compile(r"\s*+(\d{1,9}(?:\.\d{0,9})?)::")


@dataclass(frozen=True, slots=True)
class Wildcard:
    name: str


@dataclass(frozen=True, slots=True)
class Option:
    nodes: tuple["Node", ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Variants:
    """`least` to `most` of the options, each at most once."""

    options: tuple[Option, ...]
    least: int = 1
    most: int = 1
    joiner: str = ", "


Node: TypeAlias = "str | Wildcard | Variants"


# Reading --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TemplateReader:
    """Walks over a template; `at` is where it stands."""

    template: str
    at: int = 0

    def sequence(self, depth: int) -> tuple[Node, ...]:
        """Up to the `|` or `}` that ends an option, or to the end."""
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"prompt: variants nest deeper than {MAX_DEPTH}")
        nodes: list[Node] = []
        square = 0
        while piece := PIECE.match(self.template, self.at):
            text = piece[0]
            if depth and (text == "}" or (text == "|" and square <= 0)):
                break
            self.at = piece.end()
            square += (text == "[") - (text == "]")
            if text == "{":
                nodes.append(self.variants(depth + 1))
            else:
                nodes.append(Wildcard(piece["name"]) if piece["name"] else text)
        return tuple(nodes)

    def variants(self, depth: int) -> Variants:
        """What follows an opening brace, its partner included."""
        start = self.at
        if bounds := BOUNDS.match(self.template, self.at):
            self.at = bounds.end()
        options: list[Option] = []
        while True:
            weight = WEIGHT.match(self.template, self.at)
            self.at = weight.end() if weight else self.at
            options.append(Option(self.sequence(depth), float(weight[1]) if weight else 1.0))
            if self.at == len(self.template):
                raise InvalidRequest(f"prompt: the brace before {self.template[start : start + 20]!r} is never closed")
            self.at += 1
            if self.template[self.at - 1] == "}":
                return bounded(tuple(options), bounds)


def bounded(options: tuple[Option, ...], bounds: re.Match[str] | None) -> Variants:
    if bounds is None:
        return Variants(options)
    least = int(bounds["least"] or 0)
    most = int(bounds["most"] or len(options)) if bounds["to"] else least
    if not least <= most <= len(options):
        raise InvalidRequest(f"prompt: {bounds[0]} asks for {most} of {len(options)} options")
    if most > MAX_TAKEN:
        raise InvalidRequest(f"prompt: {bounds[0]} asks for {most} options; at most {MAX_TAKEN}")
    joiner = bounds["joiner"]
    return Variants(options, least, most, ", " if joiner is None else joiner)


def read_template(template: str) -> tuple[Node, ...]:
    """Raises InvalidRequest: a brace that is never closed, or bounds that cannot be met."""
    return TemplateReader(template).sequence(0)


def read_option(text: str) -> Option:
    """A line of a wildcard file."""
    weight = WEIGHT.match(text)
    return Option(read_template(text[weight.end() :] if weight else text), weight_of(text))


def weight_of(text: str) -> float:
    weight = WEIGHT.match(text)
    return float(weight[1]) if weight else 1.0


# Choosing by lot ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RandomTemplate:
    """Draws from a template. Only `Random.random` is asked: its numbers are the same in every version of Python."""

    wildcards: Wildcards
    random: Random
    choices: int = 0
    length: int = 0
    within: tuple[str, ...] = ()
    """The wildcards that led here."""
    sums: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Running sums of the weights of each wildcard's options."""

    def draw(self, nodes: Sequence[Node]) -> str:
        return "".join(map(self.draw_one, nodes))

    def draw_one(self, node: Node) -> str:
        match node:
            case str():
                self.length += len(node)
                if self.length > MAX_LENGTH:
                    raise InvalidRequest(f"prompt: it grows beyond {MAX_LENGTH} characters")
                return node
            case Wildcard(name):
                enter(self.within, name)
                words = self.draw_within(name)
                self.within = self.within[:-1]
                return words
            case Variants(options, least, most, joiner):
                number = least + int(self.random.random() * (most - least + 1))
                left = list(options)
                picked = [left.pop(self.pick([option.weight for option in left])) for _ in range(number)]
                return joiner.join([self.draw(option.nodes) for option in picked])

    def draw_within(self, name: str) -> str:
        texts = self.wildcards.options(name)
        if name not in self.sums:
            self.sums[name] = list(accumulate(weight_of(text) for text in texts))
        self.within = (*self.within, name)
        return self.draw(read_option(texts[self.pick_by(self.sums[name])]).nodes)

    def pick(self, weights: Sequence[float]) -> int:
        return self.pick_by(list(accumulate(weights)))

    def pick_by(self, sums: Sequence[float]) -> int:
        """The place of one option, by the running sums of their weights; where all are 0, the last."""
        self.choices += 1
        if self.choices > MAX_CHOICES:
            raise InvalidRequest(f"prompt: more than {MAX_CHOICES} choices in one prompt")
        return min(bisect(sums, self.random.random() * sums[-1]), len(sums) - 1)


def draw(templates: Sequence[str], wildcards: Wildcards, *, seed: int) -> list[str]:
    """One prompt from each template, the same for the same seed and files.

    Raises:
        InvalidRequest: a template or a wildcard that cannot be, or a prompt that grows without bound.
    """
    lot = RandomTemplate(wildcards, Random(seed))
    prompts: list[str] = []
    for template in templates:
        lot.length = 0
        prompts.append(lot.draw(read_template(template)))
    return prompts


# Taking every choice --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AllTemplates:
    """All that a template can become; counted before anything is made, for there may be more than atoms."""

    wildcards: Wildcards
    counted: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, nodes: Sequence[Node], within: tuple[str, ...] = ()) -> int:
        return math.prod(self.count_one(node, within) for node in nodes)

    def count_one(self, node: Node, within: tuple[str, ...]) -> int:
        match node:
            case str():
                return 1
            case Wildcard(name):
                enter(within, name)
                if name not in self.counted:
                    options = [read_option(text) for text in self.wildcards.options(name)]
                    self.counted[name] = sum(self.count(option.nodes, (*within, name)) for option in options)
                return self.counted[name]
            case Variants(options, least, most, _):
                # of_size[k]: ways to take k of the options seen so far, in one order.
                of_size = [1] + [0] * most
                for option in options:
                    ways = self.count(option.nodes, within)
                    for size in range(most, 0, -1):
                        of_size[size] += of_size[size - 1] * ways
                return sum(of_size[size] * math.factorial(size) for size in range(least, most + 1))

    def all(self, nodes: Sequence[Node]) -> Iterator[str]:
        for words in product(*[list(self.all_of(node)) for node in nodes]):
            yield "".join(words)

    def all_of(self, node: Node) -> Iterator[str]:
        match node:
            case str():
                yield node
            case Wildcard(name):
                for text in self.wildcards.options(name):
                    yield from self.all(read_option(text).nodes)
            case Variants(options, least, most, joiner):
                each = [list(self.all(option.nodes)) for option in options]
                for size in range(least, most + 1):
                    for chosen in permutations(each, size):
                        for words in product(*chosen):
                            yield joiner.join(words)


def combinations(templates: Sequence[str], wildcards: Wildcards, *, most: int) -> list[tuple[str, ...]]:
    """Every prompt of every template with every one of the others; orders count where several are taken.

    Raises:
        InvalidRequest: as `draw`, or they are more than `most`.
    """
    every = AllTemplates(wildcards)
    trees = [read_template(template) for template in templates]
    count = math.prod(every.count(tree) for tree in trees)
    if count > most:
        shown = str(count) if count < 10**12 else "more than a million million"
        raise InvalidRequest(f"prompt: {shown} combinations; at most {most}")
    return list(dict.fromkeys(product(*[list(every.all(tree)) for tree in trees])))


def enter(within: tuple[str, ...], name: str) -> None:
    if name in within:
        raise InvalidRequest(f"wildcard {name!r} leads back to itself: {' > '.join((*within, name))}")
    if len(within) >= MAX_DEPTH:
        raise InvalidRequest(f"wildcards nest deeper than {MAX_DEPTH}: {' > '.join(within[:4])} ...")
