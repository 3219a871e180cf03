"""Regional prompts: each region of a picture has a prompt of its own (arXiv:2302.08113, section 4.2).

Each is one more row of every network call; under the regions' masks, its prediction takes the place of the picture's
prompt's, by its weight. Guidance then acts on what results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from safelight.diffusion.guidance import compose_regions
from safelight.diffusion.shapes import Latent, Masks
from safelight.errors import UnsupportedOption
from safelight.imaging.canvas import fit_to
from safelight.models.adapters.effect import Active, AtSize, Effect, Network, Prediction, WantedRow
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.networks.latents import from_pil
from safelight.models.networks.load import Model
from safelight.prompts.prompt_schedule import parts_of
from safelight.spec import Denoised, Draft, Inpaint, Region, Variation


@dataclass(frozen=True, slots=True)
class ActiveRegions(Active):
    """The regions of one job."""

    regions: tuple[Region, ...]
    masks: tuple[Image.Image, ...]
    """White inside of each region, in the picture's proportions."""
    shares: Tensor | None = None
    """(n, 1, height, width) at the size that is drawn now: the part that each region's prompt has in each pixel."""

    def prompts(self) -> tuple[str, ...]:
        return tuple(region.prompt for region in self.regions)

    def rows(self) -> tuple[WantedRow, ...]:
        return tuple(WantedRow(prompt=i) for i in range(len(self.regions)))

    def at_size(self, at_size: AtSize) -> "ActiveRegions":
        masks = [from_pil(at_size(mask, "stretch").convert("RGB"))[:1] / 2 + 0.5 for mask in self.masks]
        return replace(self, shares=shares_of(torch.stack(masks), [region.weight for region in self.regions]))

    def compose(self, cond: Latent, prediction: Prediction) -> Latent:
        assert self.shares is not None
        height, width = cond.shape[-2:]
        shares = adaptive_avg_pool2d(self.shares.to(cond), (height, width))
        return compose_regions(cond, torch.stack([*prediction.own]), shares)

    def for_refiner(self) -> "ActiveRegions":
        return self


class RegionsEffect(Effect):
    name = "regions"

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        del catalogue

    def used(self, draft: Draft | Denoised) -> bool:
        return bool(draft.regions)

    def texts(self, spec: Denoised) -> tuple[str, ...]:
        return tuple(region.prompt for region in spec.regions)

    def require(self, spec: Denoised, networks: Sequence[Network]) -> None:
        del networks
        if isinstance(spec, Variation):
            raise UnsupportedOption("regions", f"{spec.model} reads no prompt; leave them out")
        if any(len(parts_of(text)) > 1 for text in self.texts(spec)):
            raise UnsupportedOption("regions", "AND joins prompts of the whole picture; give two regions the same area")

    def load(self, spec: Denoised, model: Model | None, pictures: Mapping[str, Image.Image]) -> ActiveRegions:
        del model
        size = spec.width, spec.height
        if isinstance(spec, Inpaint) and spec.only_masked:
            size = pictures[spec.init].size  # regions lie in the whole picture, of which a box is drawn
        return ActiveRegions(spec.regions, tuple(mask_of(region, size, pictures) for region in spec.regions))


def mask_of(region: Region, size: tuple[int, int], pictures: Mapping[str, Image.Image]) -> Image.Image:
    """White inside of the region of a picture of that width and height."""
    if region.mask is not None:
        mask = fit_to(pictures[region.mask].convert("L"), *size, region.fit)
    else:
        assert region.box is not None
        mask = Image.new("L", size)
        (left, right), (top, bottom) = (
            pixels(region.box[axis], region.box[axis + 2], side) for axis, side in enumerate(size)
        )
        ImageDraw.Draw(mask).rectangle((left, top, right, bottom), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(region.blur)) if region.blur else mask


def pixels(start: float, end: float, side: int) -> tuple[int, int]:
    """The first and the last pixel between two fractions of a side: at least one."""
    first = min(round(start * side), side - 1)
    return first, max(first, round(end * side) - 1)


def shares_of(masks: Masks, weights: Sequence[float]) -> Masks:
    """The share of each region in each pixel, scaled down where together they would be more than 1."""
    shares = masks * torch.tensor(weights).view(-1, 1, 1, 1)
    return shares / shares.sum(dim=0).clamp(min=1)
