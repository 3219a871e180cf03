"""What may happen to a picture without its answer changing: it is moved, tinted, blurred, set on a background.

Drawn artwork with an alpha channel goes in, pictures as a network sees them come out. All is drawn from one generator.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SLOW = (3, 10)
"""Along a side, the bumps of what changes slowly: from, and below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How much of each; what is left at 0 does not happen."""

    shift: float = 0.0
    """Of the side, at most; likewise `turn` in radians, `zoom` and `stretch` as powers of e either way."""
    turn: float = 0.0
    zoom: float = 0.0
    stretch: float = 0.0
    mirrored: float = 0.0
    """Share of the pictures; likewise `rehued`, `greyed`, `blurred`, `background`."""
    rehued: float = 0.0
    greyed: float = 0.0
    blurred: float = 0.0
    background: float = 0.0
    shade: float = 0.0
    """Brightness and contrast either way."""
    noise: float = 0.0
    """Standard deviation of the most noise; likewise `uneven`, of slow changes, such as an autoencoder leaves."""
    uneven: float = 0.0
    warped: float = 0.0
    """Of the side: standard deviation of the most that outlines waver."""
    smeared: float = 0.0
    """Share of the pictures that lose their small parts in places, as a small network paints them."""
    halo: float = 0.0
    """Of what a place differs from those around it, so much at most is taken away or added: hazy or ringing edges."""


def augmented(
    pictures: Tensor, how: Augmentation, generator: torch.Generator, *, backgrounds: Tensor | None = None
) -> Tensor:
    """(b, 4, h, w) in 0..1, colours premultiplied by alpha -> (b, 3, h, w) in -1..1.

    Args:
        backgrounds: (b, 3) in 0..1, what is behind each picture; white without.
    """
    count = len(pictures)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * 2 - 1

    def some(share: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, generator=generator) < share).float()

    def slow(channels: int) -> Tensor:
        """(b, channels, h, w) of unit variance, changing over a random share of the side: the same one for all."""
        bumps = int(torch.randint(*SLOW, (), generator=generator))
        field = torch.randn(count, channels, bumps, bumps, generator=generator)
        return F.interpolate(field, pictures.shape[-1], mode="bicubic")

    moved = F.grid_sample(pictures, places(how, pictures, uniform, some, slow), align_corners=False)
    colours, alpha = tinted(moved[:, :3], moved[:, 3:], how, uniform, some), moved[:, 3:]
    both = torch.cat([colours, alpha], dim=1)
    coarse = F.interpolate(F.interpolate(both, scale_factor=0.5, mode="area"), both.shape[-1], mode="bilinear")
    both = torch.lerp(both, coarse, some(how.blurred) * uniform(1, 1, 1).abs())
    if how.smeared:
        where = (slow(1) + 2 * uniform(1, 1, 1)).clamp(0, 1)
        both = torch.lerp(both, without_small_parts(both), some(how.smeared) * where)
    if how.halo:
        around = F.avg_pool2d(F.pad(both, (4, 4, 4, 4), mode="replicate"), 9, stride=1)
        both = torch.lerp(both, around, how.halo * uniform(1, 1, 1)).clamp(0, 1)
    behind = torch.ones(count, 3, 1, 1) if backgrounds is None else backgrounds[:, :, None, None]
    behind = torch.lerp(behind, torch.rand(count, 3, 1, 1, generator=generator), some(how.background))
    flat = both[:, :3] + behind * (1 - both[:, 3:])
    flat = flat * (1 + how.shade * uniform(1, 1, 1)) + how.shade / 3 * uniform(1, 1, 1)
    if how.noise:
        noise = torch.randn(flat.shape, generator=generator)
        flat = flat + noise * (how.noise * torch.rand(count, 1, 1, 1, generator=generator))
    if how.uneven:
        flat = flat + slow(3) * (how.uneven * torch.rand(count, 1, 1, 1, generator=generator))
    return (flat.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)


def on_white(pictures: Tensor) -> Tensor:
    """Pictures (b, 4, h, w), premultiplied, on white without augmentation: (b, 3, h, w) in -1..1, for evaluation."""
    return ((pictures[:, :3] + 1 - pictures[:, 3:]) * 2 - 1).contiguous(memory_format=torch.channels_last)


def places(how: Augmentation, pictures: Tensor, uniform, some, slow) -> Tensor:  # pyright: ignore
    """Sampling grid (b, h, w, 2) for pictures (b, c, h, w): rotation, zoom, stretch, mirroring, shift, and warping."""
    angle, zoom = uniform() * how.turn, uniform() * how.zoom
    stretch, mirror = uniform() * how.stretch, 1 - 2 * some(how.mirrored)[:, 0, 0, 0]
    wide, high, shift = (zoom + stretch).exp(), (zoom - stretch).exp(), uniform(2) * 2 * how.shift
    across = torch.stack([angle.cos() * wide * mirror, -angle.sin() * high, shift[:, 0]], dim=1)
    down = torch.stack([angle.sin() * wide * mirror, angle.cos() * high, shift[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(pictures.shape), align_corners=False)
    if how.warped:
        grid = grid + slow(2).permute(0, 2, 3, 1) * (2 * how.warped * uniform(1, 1, 1).abs())
    return grid


def without_small_parts(pictures: Tensor) -> Tensor:
    """Pictures (b, c, h, w) without details below 3 pixels: the mean of opening after closing and of the reverse,
    smoothed."""

    def widest(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)

    def opened(x: Tensor) -> Tensor:
        return widest(-widest(-x))

    def closed(x: Tensor) -> Tensor:
        return -opened(-x)

    painted = (opened(closed(pictures)) + closed(opened(pictures))) / 2
    return F.avg_pool2d(F.pad(painted, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def tinted(colours: Tensor, alpha: Tensor, how: Augmentation, uniform, some) -> Tensor:  # pyright: ignore
    """Rotate all hues of some pictures by one angle, and make some grey; colours (b, 3, h, w), alpha (b, 1, h, w)."""
    if not (how.rehued or how.greyed):
        return colours
    grey = colours.mean(dim=1, keepdim=True)
    # A turn about the grey axis: what is left of a colour without its grey, rotated in its plane.
    rest = colours - grey
    side = (rest[:, [1, 2, 0]] - rest[:, [2, 0, 1]]) / 3**0.5
    angle = uniform(1, 1, 1) * torch.pi * some(how.rehued)
    turned = rest * angle.cos() + side * angle.sin()
    kept = 1 - some(how.greyed)
    return torch.minimum((grey + turned * kept).clamp(min=0), alpha)
