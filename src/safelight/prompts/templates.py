"""Prompts with choices in them, in the syntax of the Dynamic Prompts extension.

| written | means |
|---|---|
| `{red\\|green\\|blue}` | one of them |
| `{3::red\\|green}` | red three times as often |
| `{2$$a\\|b\\|c}` `{1-2$$a\\|b\\|c}` | two of them, one or two, with commas between |
| `{2$$ and $$a\\|b\\|c}` | with " and " between |
| `__colour__` | a line of the file colour.txt (`wildcards.py`) |

`draw` chooses at random, `combinations` makes every combination. Bars inside square brackets do not separate options:
`{[a|b]|c}` is one of `[a|b]` and `c`. A backslash escapes the next character.
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
"""Maximum length of the resulting prompt, equal to that of a spec's prompt."""
MAX_DEPTH = 10
"""Maximum nesting of variants, and of wildcards."""
MAX_OPTIONS = 20
"""Maximum number of options taken by one pair of braces."""
MAX_CHOICES = 1000
"""Maximum number of choices in one prompt: bounds the work."""

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
    """`min_count` to `max_count` of the options, each at most once."""

    options: tuple[Option, ...]
    min_count: int = 1
    max_count: int = 1
    joiner: str = ", "


Node: TypeAlias = "str | Wildcard | Variants"


# Reading --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TemplateParser:
    """A recursive-descent parser; `position` is the index of the next character."""

    template: str
    position: int = 0

    def sequence(self, depth: int) -> tuple[Node, ...]:
        """Parse up to the `|` or `}` that ends an option, or to the end."""
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"prompt: variants nest deeper than {MAX_DEPTH}")
        nodes: list[Node] = []
        bracket_depth = 0
        while piece := PIECE.match(self.template, self.position):
            text = piece[0]
            if depth and (text == "}" or (text == "|" and bracket_depth <= 0)):
                break
            self.position = piece.end()
            bracket_depth += (text == "[") - (text == "]")
            if text == "{":
                nodes.append(self.variants(depth + 1))
            else:
                nodes.append(Wildcard(piece["name"]) if piece["name"] else text)
        return tuple(nodes)

    def variants(self, depth: int) -> Variants:
        """Parse what follows an opening brace, including the closing one."""
        start = self.position
        if bounds := BOUNDS.match(self.template, self.position):
            self.position = bounds.end()
        options: list[Option] = []
        while True:
            weight = WEIGHT.match(self.template, self.position)
            self.position = weight.end() if weight else self.position
            options.append(Option(self.sequence(depth), float(weight[1]) if weight else 1.0))
            if self.position == len(self.template):
                raise InvalidRequest(f"prompt: the brace before {self.template[start : start + 20]!r} is never closed")
            self.position += 1
            if self.template[self.position - 1] == "}":
                return bounded(tuple(options), bounds)


def bounded(options: tuple[Option, ...], bounds: re.Match[str] | None) -> Variants:
    if bounds is None:
        return Variants(options)
    min_count = int(bounds["least"] or 0)
    max_count = int(bounds["most"] or len(options)) if bounds["to"] else min_count
    if not min_count <= max_count <= len(options):
        raise InvalidRequest(f"prompt: {bounds[0]} asks for {max_count} of {len(options)} options")
    if max_count > MAX_OPTIONS:
        raise InvalidRequest(f"prompt: {bounds[0]} asks for {max_count} options; at most {MAX_OPTIONS}")
    joiner = bounds["joiner"]
    return Variants(options, min_count, max_count, ", " if joiner is None else joiner)


def read_template(template: str) -> tuple[Node, ...]:
    """Parse a template; raises InvalidRequest for an unclosed brace or impossible bounds."""
    return TemplateParser(template).sequence(0)


def read_option(text: str) -> Option:
    """Parse a line of a wildcard file."""
    weight = WEIGHT.match(text)
    return Option(read_template(text[weight.end() :] if weight else text), weight_of(text))


def weight_of(text: str) -> float:
    weight = WEIGHT.match(text)
    return float(weight[1]) if weight else 1.0


# Random choices -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RandomTemplate:
    """Draws random prompts. It uses only `Random.random`, whose numbers are the same in every version of Python."""

    wildcards: Wildcards
    random: Random
    choices: int = 0
    length: int = 0
    parents: tuple[str, ...] = ()
    """The wildcards that are being expanded, outermost first."""
    cumulative_weights: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Cumulative weights of the options, by wildcard."""

    def draw(self, nodes: Sequence[Node]) -> str:
        return "".join(map(self.draw_node, nodes))

    def draw_node(self, node: Node) -> str:
        match node:
            case str():
                self.length += len(node)
                if self.length > MAX_LENGTH:
                    raise InvalidRequest(f"prompt: longer than {MAX_LENGTH} characters when expanded")
                return node
            case Wildcard(name):
                require_no_cycle(self.parents, name)
                text = self.draw_wildcard(name)
                self.parents = self.parents[:-1]
                return text
            case Variants(options, min_count, max_count, joiner):
                number = min_count + int(self.random.random() * (max_count - min_count + 1))
                remaining = list(options)
                picked = [remaining.pop(self.choose([option.weight for option in remaining])) for _ in range(number)]
                return joiner.join([self.draw(option.nodes) for option in picked])

    def draw_wildcard(self, name: str) -> str:
        texts = self.wildcards.options(name)
        if name not in self.cumulative_weights:
            self.cumulative_weights[name] = list(accumulate(weight_of(text) for text in texts))
        self.parents = (*self.parents, name)
        return self.draw(read_option(texts[self.choose_by_sums(self.cumulative_weights[name])]).nodes)

    def choose(self, weights: Sequence[float]) -> int:
        return self.choose_by_sums(list(accumulate(weights)))

    def choose_by_sums(self, cumulative_weights: Sequence[float]) -> int:
        """Return the index of a random option, given cumulative weights; the last one if all weights are 0."""
        self.choices += 1
        if self.choices > MAX_CHOICES:
            raise InvalidRequest(f"prompt: more than {MAX_CHOICES} choices in one prompt")
        return min(
            bisect(cumulative_weights, self.random.random() * cumulative_weights[-1]), len(cumulative_weights) - 1
        )


def draw(templates: Sequence[str], wildcards: Wildcards, *, seed: int) -> list[str]:
    """Draw one prompt from each template, the same for the same seed and files.

    Raises:
        InvalidRequest: an invalid template or wildcard, or a prompt longer than `MAX_LENGTH`.
    """
    template_drawer = RandomTemplate(wildcards, Random(seed))
    prompts: list[str] = []
    for template in templates:
        template_drawer.length = 0
        prompts.append(template_drawer.draw(read_template(template)))
    return prompts


# Every combination ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AllTemplates:
    """All prompts of a template. They are counted before any is made, because there may be astronomically many."""

    wildcards: Wildcards
    counted: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, nodes: Sequence[Node], parents: tuple[str, ...] = ()) -> int:
        return math.prod(self.count_node(node, parents) for node in nodes)

    def count_node(self, node: Node, parents: tuple[str, ...]) -> int:
        match node:
            case str():
                return 1
            case Wildcard(name):
                require_no_cycle(parents, name)
                if name not in self.counted:
                    options = [read_option(text) for text in self.wildcards.options(name)]
                    self.counted[name] = sum(self.count(option.nodes, (*parents, name)) for option in options)
                return self.counted[name]
            case Variants(options, min_count, max_count, _):
                # ways_by_size[k]: ways to choose k of the options so far, disregarding order.
                ways_by_size = [1] + [0] * max_count
                for option in options:
                    ways = self.count(option.nodes, parents)
                    for size in range(max_count, 0, -1):
                        ways_by_size[size] += ways_by_size[size - 1] * ways
                return sum(ways_by_size[size] * math.factorial(size) for size in range(min_count, max_count + 1))

    def expand_all(self, nodes: Sequence[Node]) -> Iterator[str]:
        for parts in product(*[list(self.expand_node(node)) for node in nodes]):
            yield "".join(parts)

    def expand_node(self, node: Node) -> Iterator[str]:
        match node:
            case str():
                yield node
            case Wildcard(name):
                for text in self.wildcards.options(name):
                    yield from self.expand_all(read_option(text).nodes)
            case Variants(options, min_count, max_count, joiner):
                per_option = [list(self.expand_all(option.nodes)) for option in options]
                for size in range(min_count, max_count + 1):
                    for chosen in permutations(per_option, size):
                        for parts in product(*chosen):
                            yield joiner.join(parts)


def combinations(templates: Sequence[str], wildcards: Wildcards, *, max_count: int) -> list[tuple[str, ...]]:
    """Return every combination of the templates' prompts; different orders of several options count as different.

    Raises:
        InvalidRequest: as `draw`, or more than `max_count` combinations.
    """
    all_templates = AllTemplates(wildcards)
    trees = [read_template(template) for template in templates]
    count = math.prod(all_templates.count(tree) for tree in trees)
    if count > max_count:
        shown = str(count) if count < 10**12 else "more than a million million"
        raise InvalidRequest(f"prompt: {shown} combinations; at most {max_count}")
    return list(dict.fromkeys(product(*[list(all_templates.expand_all(tree)) for tree in trees])))


def require_no_cycle(parents: tuple[str, ...], name: str) -> None:
    if name in parents:
        raise InvalidRequest(f"wildcard {name!r} refers to itself: {' > '.join((*parents, name))}")
    if len(parents) >= MAX_DEPTH:
        raise InvalidRequest(f"wildcards nest deeper than {MAX_DEPTH}: {' > '.join(parents[:4])} ...")
