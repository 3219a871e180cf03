"""Random captions for pictures: a new one for each training sample."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from safelight.lifecycle.mini.mini import CaptionRecipe

STYLE_WORDS = {
    "noto": ("noto style", "noto style", "noto"),
    "flat": ("flat style", "flat style", "flat"),
    "glossy": ("glossy style", "glossy style", "glossy", "3d style"),
}
OPENINGS = (
    *("a {}", "a {}", "one {}", "the {}", "{} emoji", "an icon of a {}", "a picture of a {}", "a drawing of a {}"),
    *("an image of a {}", "a photo of a {}", "photo of a {}"),
)
FILLERS = ("cute", "little", "small", "big", "nice", "pretty", "simple", "lovely", "beautiful", "funny")
"""Common words that do not change the picture."""


@dataclass(frozen=True, slots=True)
class Aliases:
    """Names by emojibase label, and the labels of the popular concepts."""

    names: Mapping[str, tuple[str, ...]]
    core: frozenset[str]


def read_aliases() -> Aliases:
    """The hand-written list in aliases.txt."""
    text = resources.files("safelight.lifecycle.mini").joinpath("aliases.txt").read_text("utf-8")
    names: dict[str, tuple[str, ...]] = {}
    core = set[str]()
    for line in text.splitlines():
        if line and not line.startswith("#"):
            label, _, words = line.removeprefix("*").partition(":")
            names[label] = tuple(word.strip() for word in words.split(","))
            if line.startswith("*"):
                core.add(label)
    return Aliases(names, frozenset(core))


def names_of(label: str, aliases: Aliases) -> tuple[str, ...]:
    """Every name of a concept: its aliases, and its label unless another concept claims that word."""
    own = aliases.names.get(label, ())
    claimed = any(label.lower() in words for other, words in aliases.names.items() if other != label)
    if label.lower() in own or (claimed and own):
        return own
    return (*own, label.lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The attributes of one picture that a caption may name."""

    names: Sequence[str]
    keywords: Sequence[str]
    style: str
    colour: str
    own_colour: bool
    background: str | None = None


def caption(subject: Subject, recipe: CaptionRecipe, draw: random.Random) -> str:
    """One caption: a name or keywords, then perhaps colour, style, background; sometimes nothing."""
    return caption_pair(subject, recipe, draw)[0]


def caption_pair(subject: Subject, recipe: CaptionRecipe, draw: random.Random) -> tuple[str, str]:
    """One caption, and the same without its words for the style."""
    if draw.random() < recipe.empty:
        return "", ""
    # The everyday name comes first in the list and is drawn half of the time.
    name = subject.names[0] if draw.random() < 0.5 else draw.choice(subject.names)
    keywords = draw.sample(list(subject.keywords), min(len(subject.keywords), draw.randint(1, 3)))
    kind = draw.random()
    if kind < recipe.name_only or not keywords:
        words, more = name, ""
    elif kind < recipe.name_only + recipe.name_and_keywords:
        words, more = name, ", " + ", ".join(keywords)
    else:
        words, more = keywords[0], "".join(", " + word for word in keywords[1:])
    named_colour = recipe.own_colour if subject.own_colour else recipe.copy_colour
    if draw.random() < named_colour and subject.colour not in words.split():
        words = f"{subject.colour} {without_colours(words)}"
    if draw.random() < recipe.filler:
        words = f"{draw.choice(FILLERS)} {words}"
    style = draw.choice(STYLE_WORDS[subject.style]) if draw.random() < recipe.style else ""
    style_first = bool(style) and draw.random() < 0.3
    opening = draw.choice(OPENINGS) if draw.random() < recipe.opening else "{}"
    behind = subject.background and draw.random() < recipe.background
    place = f" on a {subject.background} background" if behind else ""

    def caption_in(style: str) -> str:
        if not style:
            return opening.format(words) + place + more
        if style_first:
            return opening.format(f"{style} {words}") + place + more
        return opening.format(words) + f"{place}, {style}" + more

    return caption_in(style), caption_in("")


COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")


def without_colours(words: str) -> str:
    """The words less a leading colour word: a blue "red apple" is a blue apple."""
    first, _, rest = words.partition(" ")
    return rest if rest and first in COLOURS and not rest.startswith(("fruit", "holes")) else words
