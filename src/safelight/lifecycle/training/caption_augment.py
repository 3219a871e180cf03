"""What is said of a picture, each time it is shown."""

import random


def worded(caption: str, draw: random.Random, *, dropout: float, shuffle: bool, keep: int) -> str:
    """The caption, or nothing; its tags, but for the first `keep`, in another order."""
    if dropout and draw.random() < dropout:
        return ""
    if not shuffle:
        return caption
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    rest = tags[keep:]
    draw.shuffle(rest)
    return ", ".join([*tags[:keep], *rest])


OBJECT = (
    "a photo of a {}", "a picture of a {}", "a rendering of a {}", "a close-up photo of a {}",
    "a cropped photo of the {}", "the photo of a {}", "a photo of the {}", "a good photo of a {}", "a photo of one {}",
    "a photo of a nice {}", "{}",
)  # fmt: skip
STYLE = (
    "a picture in the style of {}", "a drawing in the style of {}", "a painting in the style of {}", "{} style",
    "a nice picture in the style of {}", "a close-up in the style of {}", "a rendering in the style of {}",
)  # fmt: skip
"""Sentences around a new word, after those of textual inversion's authors (arXiv:2208.01618)."""


def sentence(name: str, draw: random.Random, *, concept: str) -> str:
    return draw.choice(STYLE if concept == "style" else OBJECT).format(name)
