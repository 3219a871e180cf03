"""A spec inside the engine: mutable state that only the engine changes. It can be paused at step boundaries."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from safelight.diffusion.schedule import Schedule
from safelight.diffusion.shapes import Latent
from safelight.diffusion.tiling import Tiling
from safelight.errors import UnsupportedOption
from safelight.imaging.canvas import Box, upscale
from safelight.models.adapters.effect import Active, Moment, RowKind
from safelight.models.networks.encode import Conditioning
from safelight.models.networks.load import Model
from safelight.models.networks.textual_inversion import Embedding
from safelight.prompts.prompt_schedule import parts_of
from safelight.spec import Denoised, Edit, HighresFix, ImageToImage, TextToImage

if TYPE_CHECKING:
    Pictures = Mapping[str, Image.Image]
    """Init pictures, masks and hints, by their digest in the spec."""

State = Literal["waiting", "running", "decoding", "ended"]


Enlarge = Callable[[Image.Image, float, str], Image.Image]
"""Enlarges a picture by a factor, with a named upscaler."""


def by_lanczos(image: Image.Image, scale: float, name: str) -> Image.Image:
    if name != "lanczos":
        raise UnsupportedOption("upscaler", f"this engine was opened without {name!r}, only with 'lanczos'")
    return upscale(image, scale)


@dataclass(slots=True, kw_only=True)
class Blend:
    """Inpainting with a network that takes no mask: the kept part is restored after each call."""

    mask: Tensor
    """(1, h, w), 1 where the picture is redrawn."""
    init: Latent
    noise: Latent


@dataclass(slots=True, kw_only=True)
class Overlay:
    """The original, pasted over the result at the end, so that kept pixels do not change."""

    original: Image.Image
    soft_mask: Image.Image
    box: Box | None


@dataclass(slots=True, kw_only=True)
class Trajectory:
    """One pass from noise to a latent: a schedule, and the job's position in it."""

    schedule: Schedule
    latents: list[Latent]
    """The latents of the last K calls, newest first; zeros at the start."""
    outputs: list[Latent]
    blend: Blend | None = None
    extra_channels: Tensor | None = None
    """(c, h, w), further input channels of the network: mask and masked picture, or the picture to edit."""
    effects: Mapping[str, Active] = field(default_factory=dict[str, Active])
    """The job's effects, prepared for this size."""
    row: int = 0
    fresh_noise: Latent | None = None
    """The noise of the current row, stored until the row is done, so that a repeated call uses the same noise."""

    @property
    def finished(self) -> bool:
        return self.row == len(self.schedule)

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return self.schedule.steps if self.finished else int(self.schedule.step_of[self.row])

    @property
    def ends_step(self) -> bool:
        """Whether the next call is the last of its step."""
        row = self.row + 1
        return row == len(self.schedule) or bool(self.schedule.step_of[row] > self.schedule.step_of[row - 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompts:
    """The conditionings of a job's prompts. Each tuple has one entry per step, the second pass after the first; equal
    entries are the same object."""

    positive: tuple[tuple[Conditioning, ...], ...]
    """One tuple for each prompt combined by AND."""
    weights: tuple[float, ...]
    """The weight of each of them."""
    negative: tuple[Conditioning, ...] | None
    of_effects: Mapping[str, tuple[tuple[Conditioning, ...], ...]] = field(
        default_factory=dict[str, tuple[tuple[Conditioning, ...], ...]]
    )
    """By effect, one tuple for each of its own prompts."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    id: str
    spec: Denoised
    model: Model
    pictures: "Pictures"
    effects: Mapping[str, Active] = field(default_factory=dict[str, Active])
    """The effects that the spec uses, in memory."""
    embeddings: tuple[Embedding, ...] = ()
    """The textual inversions that the spec pins."""
    refiner: Model | None = None
    """The model that draws the last steps; None once it does."""
    enlarge: Enlarge = by_lanczos
    """Enlarges a picture before a second pass."""
    tenant: str = ""
    priority: int = 0
    preview_every: int = 0
    arrived: float = field(default_factory=time.monotonic)

    state: State = "waiting"
    paused: bool = False
    cancelled: bool = False
    generator: torch.Generator | None = None
    encoded: EncodedPrompts | None = None
    num_parts: int = field(init=False)
    """Number of prompts combined by AND; each has a row in every call."""
    trajectory: Trajectory | None = None
    enlarged: bool = False
    """Whether the job is in the second pass of highres."""
    steps_before: int = 0
    """Number of steps finished in earlier trajectories."""
    passes: tuple[int, ...] = ()
    """Steps of each pass: highres makes two, and a refiner's steps belong to the pass that it ends."""
    overlay: Overlay | None = None
    compute_s: float = 0.0
    """The job's share of the time of its network calls."""

    def __post_init__(self) -> None:
        self.num_parts = len(parts_of(self.spec.prompt))

    @property
    def strict(self) -> bool:
        return self.spec.determinism == "strict"

    @property
    def highres(self) -> HighresFix | None:
        return self.spec.highres if isinstance(self.spec, TextToImage) else None

    @property
    def now(self) -> Trajectory:
        assert self.trajectory is not None, "the job has not been prepared"
        return self.trajectory

    @property
    def tiling(self) -> Tiling | None:
        """The tiles of the next call, in latent pixels; None if one tile covers the picture."""
        if not isinstance(self.spec, ImageToImage) or self.spec.tiles is None:
            return None
        scale, tiles = self.model.description.vae_scale, self.spec.tiles
        assert tiles.side is not None, "a complete spec has a side"
        tiling = Tiling(side=tiles.side // scale, overlap=tiles.overlap // scale)
        return tiling if max(self.size) // scale > tiling.side else None

    @property
    def num_tiles(self) -> int:
        scale = self.model.description.vae_scale
        width, height = self.size
        return len(self.tiling.corners(height // scale, width // scale)) if self.tiling else 1

    @property
    def guided(self) -> bool:
        """Whether guidance acts in the next call."""
        if self.spec.guidance <= 1 or not self.model.description.supports_cfg:
            return False
        if self.trajectory is None:
            return True
        interval = self.spec.guidance_interval
        return interval.start <= self.progress < interval.end

    @property
    def progress(self) -> float:
        """Fraction of the current pass that is finished."""
        first, *_ = self.passes
        return (self.step - first) / self.passes[1] if self.enlarged else self.step / first

    def effect_row(self, name: str, kind: RowKind, *, negative: bool = False) -> Any:
        """What the effect applies to one row of the next call; None if the job does not have the effect."""
        trajectory = self.now
        if name not in trajectory.effects:
            return None
        moment = Moment(
            spec=self.spec,
            step=trajectory.step,
            steps=trajectory.schedule.steps,
            progress=self.progress,
            kind=kind,
            negative=negative,
            uses_cfg=self.uses_cfg,
        )
        return trajectory.effects[name].row(moment)

    @property
    def uses_cfg(self) -> bool:
        """Whether the next call has a row with the negative prompt, which AND needs too."""
        return self.guided or self.num_parts > 1

    @property
    def uses_image_cfg(self) -> bool:
        """Whether the next call has a row without the picture to edit."""
        return self.guided and isinstance(self.spec, Edit) and self.spec.image_guidance > 1

    @property
    def rows(self) -> int:
        """Number of network rows in the next call and in its follow-up call."""
        wanted = sum(len(active.rows()) for active in self.effects.values())
        return self.num_parts + self.uses_cfg + self.uses_image_cfg + wanted

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels in the current pass."""
        if not self.enlarged or self.highres is None:
            return self.spec.width, self.spec.height
        scale, step = self.highres.scale, self.model.description.side_step
        return scaled_side(self.spec.width, scale, step), scaled_side(self.spec.height, scale, step)

    @property
    def megapixels(self) -> float:
        """The cost of the next call: rows times picture area, effects included."""
        width, height = self.size
        effects = sum(active.cost() for active in self.effects.values())
        area = width * height
        if tiling := self.tiling:
            scale = self.model.description.vae_scale
            area = tiling.area(height // scale, width // scale) * scale**2
        return self.rows * (1 + effects) * area / 1e6

    @property
    def step(self) -> int:
        """Number of finished steps, including earlier trajectories."""
        return self.steps_before + (0 if self.trajectory is None else self.trajectory.step)

    @property
    def total_steps(self) -> int:
        return sum(self.passes)


def scaled_side(side: int, scale: float, step: int) -> int:
    return max(64, round(side * scale / step) * step)
