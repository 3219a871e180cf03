"""Values that specs are made of: a second pass, tiles, a guidance interval, pinned parts of the model."""

from collections.abc import Iterator
from typing import Literal

from safelight.errors import InvalidField
from safelight.spec.fields import (
    BundledUpscaler,
    Digest,
    Fraction,
    Frozen,
    HighresUpscaler,
    Margin,
    ModelName,
    Scale,
    Side,
    Steps,
    Strength,
    Switch,
)


class Tiles(Frozen):
    """Draw a picture larger than the model can, in squares that overlap and are drawn together (arXiv:2302.08113)."""

    side: Side | None = None
    """In pixels; None takes what the model draws best."""
    overlap: Margin = 32
    """Pixels that neighbours share, and over which they fade into one another."""
    upscaler: Literal["lanczos", BundledUpscaler] = "lanczos"
    """What enlarges the picture before it is drawn over."""


class HighresFix(Frozen):
    """A second, larger pass over the first pass's result."""

    scale: Scale = 2.0
    strength: Strength = 0.6
    steps: Steps | None = None
    """None: as many as the first pass."""
    upscaler: HighresUpscaler = "lanczos"


def out_of_order(start: float, end: float) -> Iterator[InvalidField]:
    if start >= end:
        yield InvalidField("start", f"{start} must be below end {end}", "end")


class GuidanceInterval(Frozen):
    """The part of the walk, as fractions of its steps, in which guidance acts (arXiv:2404.07724)."""

    start: Fraction = 0.0
    end: Fraction = 1.0

    def clashes(self) -> Iterator[InvalidField]:
        yield from out_of_order(self.start, self.end)


class Span(Frozen):
    """The part of the walk, as fractions of its steps, in which something acts: on the steps that lie wholly inside."""

    start: Fraction = 0.0
    end: Fraction = 1.0

    def clashes(self) -> Iterator[InvalidField]:
        yield from out_of_order(self.start, self.end)

    def holds(self, step: int, steps: int) -> bool:
        """Whether it acts in this one of so many steps, counted from 0."""
        return self.start <= step / steps and (step + 1) / steps <= self.end


class Sides(Frozen):
    """Pixels added beyond each edge of a picture."""

    left: Margin = 0
    top: Margin = 0
    right: Margin = 0
    bottom: Margin = 0


class PinnedEmbedding(Frozen):
    """A textual inversion that the prompt names, and the sha256 of the file that this name stood for."""

    name: str
    digest: Digest


PartName = Literal["vae", "text_encoder"]
"""What may stand in for a model's own."""


class PinnedPart(Frozen):
    """A part that stands in for the model's own, and the sha256 of what this name stood for."""

    name: str
    digest: Digest


class PinnedRefiner(Frozen):
    """Another model that draws the rest of the walk, pinned to its weights."""

    model: ModelName
    digest: Digest
    switch: Switch = 0.8
    """From this share of the noise levels on."""
