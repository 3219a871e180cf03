"""A spec inside the engine. Mutable, and only the engine touches it; at a step boundary it can be paused or moved."""

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
    """Start pictures and masks, by the digest that the spec names them with."""

State = Literal["waiting", "running", "decoding", "ended"]


Enlarge = Callable[[Image.Image, float, str], Image.Image]
"""A picture, so many times as large, by the upscaler of that name."""


def by_lanczos(image: Image.Image, scale: float, name: str) -> Image.Image:
    if name != "lanczos":
        raise UnsupportedOption("upscaler", f"this engine was opened without {name!r}, only with 'lanczos'")
    return upscale(image, scale)


@dataclass(slots=True, kw_only=True)
class Blend:
    """Inpainting with a network that knows nothing of masks: after each call, what is kept is put back."""

    mask: Tensor
    """(1, h, w) 1 where the picture is drawn anew."""
    init: Latent
    noise: Latent


@dataclass(slots=True, kw_only=True)
class Overlay:
    """What is laid over the drawn picture at the end, so that kept pixels stay as they were."""

    original: Image.Image
    soft_mask: Image.Image
    box: Box | None


@dataclass(slots=True, kw_only=True)
class Trajectory:
    """One way from noise to a latent: a schedule, and where the job stands in it."""

    schedule: Schedule
    latents: list[Latent]
    """Newest first, K of them; zeros where there is no past yet."""
    outputs: list[Latent]
    blend: Blend | None = None
    extra_channels: Tensor | None = None
    """(c, h, w) what the network sees beside the latent: mask and masked picture, or the picture that is edited."""
    effects: Mapping[str, Active] = field(default_factory=dict[str, Active])
    """The job's effects, prepared for this size."""
    row: int = 0
    fresh_noise: Latent | None = None
    """Drawn for the row at hand; kept until the row is done, so that a call tried twice draws once."""

    @property
    def finished(self) -> bool:
        return self.row == len(self.schedule)

    @property
    def step(self) -> int:
        """Steps finished."""
        return self.schedule.steps if self.finished else int(self.schedule.step_of[self.row])

    @property
    def ends_step(self) -> bool:
        """The coming call is the last of its step."""
        row = self.row + 1
        return row == len(self.schedule) or bool(self.schedule.step_of[row] > self.schedule.step_of[row - 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompts:
    """What the network is told of a job; the tuples hold an entry for each step, those of the second walk after the
    first's. Entries of steps that are told the same are the same object."""

    positive: tuple[tuple[Conditioning, ...], ...]
    """For each of the prompts that AND joins."""
    weights: tuple[float, ...]
    """How much each of them counts."""
    negative: tuple[Conditioning, ...] | None


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
    """What will draw the rest, in memory; None once it does."""
    enlarge: Enlarge = by_lanczos
    """What makes a picture larger before it is drawn over, by name."""
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
    """Prompts joined by AND, each with a row of its own in every call."""
    trajectory: Trajectory | None = None
    enlarged: bool = False
    """In the second walk of highres."""
    steps_before: int = 0
    """Finished in earlier walks."""
    passes: tuple[int, ...] = ()
    """Steps of each pass: highres makes two, and a refiner's walk belongs to the pass that it ends."""
    overlay: Overlay | None = None
    compute_s: float = 0.0
    """This job's share of the calls it took part in."""

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
        """The tiles in which the coming call draws, in latent pixels; None where the picture is not larger than one."""
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
        """Guidance acts in the coming call."""
        if self.spec.guidance <= 1 or not self.model.description.supports_cfg:
            return False
        if self.trajectory is None:
            return True
        interval = self.spec.guidance_interval
        return interval.start <= self.progress < interval.end

    @property
    def progress(self) -> float:
        """The share of its pass that lies behind it."""
        first, *_ = self.passes
        return (self.step - first) / self.passes[1] if self.enlarged else self.step / first

    def effect_row(self, name: str, kind: RowKind, *, negative: bool = False) -> Any:
        """What the effect applies to one row of the coming call; None where the job has no such effect."""
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
        """The coming call also asks about the negative prompt, which is what AND measures its parts against."""
        return self.guided or self.num_parts > 1

    @property
    def uses_image_cfg(self) -> bool:
        """The coming call also asks what the network draws without seeing the picture that is edited."""
        return self.guided and isinstance(self.spec, Edit) and self.spec.image_guidance > 1

    @property
    def uses_pag(self) -> bool:
        """The coming call also asks what the network draws without structure."""
        return self.spec.pag_scale > 0

    @property
    def uses_sag(self) -> bool:
        """After the coming call, the network is asked once more: about the latent with a blur on what it looked at."""
        return self.spec.sag_scale > 0

    @property
    def rows(self) -> int:
        """Network rows in the coming call, and in the one that follows from it."""
        return self.num_parts + self.uses_cfg + self.uses_image_cfg + self.uses_pag + self.uses_sag

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of what is being denoised now."""
        if not self.enlarged or self.highres is None:
            return self.spec.width, self.spec.height
        scale, step = self.highres.scale, self.model.description.side_step
        return scaled_side(self.spec.width, scale, step), scaled_side(self.spec.height, scale, step)

    @property
    def megapixels(self) -> float:
        """The cost of the coming call: rows times picture area, effects included."""
        width, height = self.size
        effects = sum(active.cost() for active in self.effects.values())
        area = width * height
        if tiling := self.tiling:
            scale = self.model.description.vae_scale
            area = tiling.area(height // scale, width // scale) * scale**2
        return self.rows * (1 + effects) * area / 1e6

    @property
    def step(self) -> int:
        """Steps finished, those of an earlier walk included."""
        return self.steps_before + (0 if self.trajectory is None else self.trajectory.step)

    @property
    def total_steps(self) -> int:
        return sum(self.passes)


def scaled_side(side: int, scale: float, step: int) -> int:
    return max(64, round(side * scale / step) * step)
