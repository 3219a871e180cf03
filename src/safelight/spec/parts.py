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


class Tiles(Frozen, use_attribute_docstrings=True):
    """Draw a picture larger than the model can, in squares that overlap and are drawn together (arXiv:2302.08113)."""

    side: Side | None = None
    """Side of a tile in pixels; left out, what the model draws best."""
    overlap: Margin = 32
    """Pixels that neighbouring tiles share, and over which they are blended."""
    upscaler: Literal["lanczos", BundledUpscaler] = "lanczos"
    """Upscaler that enlarges the picture before it is redrawn."""


class HighresFix(Frozen, use_attribute_docstrings=True):
    """A second, larger pass over the first pass's result."""

    scale: Scale = 2.0
    """Size of the second pass, as a multiple of the first."""
    strength: Strength = 0.6
    """Denoising strength of the second pass: how far it departs from the first."""
    steps: Steps | None = None
    """Sampling steps of the second pass; left out, as many as the first."""
    upscaler: HighresUpscaler = "lanczos"
    """Upscaler that enlarges the result of the first pass."""


def out_of_order(start: float, end: float) -> Iterator[InvalidField]:
    if start >= end:
        yield InvalidField("start", f"{start} must be below end {end}", "end")


class GuidanceInterval(Frozen, use_attribute_docstrings=True):
    """The part of the steps, as fractions, in which guidance acts (arXiv:2404.07724)."""

    start: Fraction = 0.0
    """First step with guidance, as a fraction of the steps."""
    end: Fraction = 1.0
    """Last step with guidance, as a fraction of the steps."""

    def clashes(self) -> Iterator[InvalidField]:
        yield from out_of_order(self.start, self.end)


class Span(Frozen, use_attribute_docstrings=True):
    """The part of the steps, as fractions, in which something acts: on the steps that lie wholly inside."""

    start: Fraction = 0.0
    """Where it begins to act, as a fraction of the steps."""
    end: Fraction = 1.0
    """Where it stops acting, as a fraction of the steps."""

    def clashes(self) -> Iterator[InvalidField]:
        yield from out_of_order(self.start, self.end)

    def holds(self, step: int, steps: int) -> bool:
        """Whether it acts in this one of so many steps, counted from 0."""
        return self.start <= step / steps and (step + 1) / steps <= self.end


class Sides(Frozen, use_attribute_docstrings=True):
    """Pixels added beyond each edge of a picture."""

    left: Margin = 0
    """Pixels on the left, a multiple of 8."""
    top: Margin = 0
    """Pixels at the top, a multiple of 8."""
    right: Margin = 0
    """Pixels on the right, a multiple of 8."""
    bottom: Margin = 0
    """Pixels at the bottom, a multiple of 8."""


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


PluginKind = Literal["effect", "sampler", "upscaler"]


class PinnedPlugin(Frozen):
    """A plugin that takes part in a picture, and the package that it came from."""

    kind: PluginKind
    name: str
    package: str
    version: str


class PinnedRefiner(Frozen):
    """Another model that draws the rest of the walk, pinned to its weights."""

    model: ModelName
    digest: Digest
    switch: Switch = 0.8
    """From this share of the noise levels on."""
