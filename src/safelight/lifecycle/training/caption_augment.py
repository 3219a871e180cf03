"""Caption dropout, tag shuffling, and templates around a new word."""

import random


def augment_caption(caption: str, rng: random.Random, *, dropout: float, shuffle: bool, keep: int) -> str:
    """Drop the caption with probability `dropout`; with `shuffle`, shuffle its tags after the first `keep`."""
    if dropout and rng.random() < dropout:
        return ""
    if not shuffle:
        return caption
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    rest = tags[keep:]
    rng.shuffle(rest)
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
"""Templates around a new word, after those of textual inversion's authors (arXiv:2208.01618)."""


def template_caption(name: str, rng: random.Random, *, concept: str) -> str:
    return rng.choice(STYLE if concept == "style" else OBJECT).format(name)
