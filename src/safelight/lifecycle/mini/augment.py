"""Augmentation that keeps the label: shift, tint, blur, backgrounds.

Input is artwork with an alpha channel, output RGB pictures for a network. All randomness comes from one generator.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SLOW = (3, 10)
"""Range of the number of bumps along a side in a smooth random field: minimum, and one more than the maximum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """The strength of each augmentation; 0 is off."""

    shift: float = 0.0
    """At most this share of the side; likewise `turn` in radians, `zoom` and `stretch` as powers of e either way."""
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
    """Largest change of brightness and contrast, either way."""
    noise: float = 0.0
    """Largest standard deviation of the noise; likewise `uneven`, of smooth noise like an autoencoder's errors."""
    uneven: float = 0.0
    warped: float = 0.0
    """Largest standard deviation of the warp, as a share of the side."""
    smeared: float = 0.0
    """Share of the pictures that lose small details in places, as in a small network's output."""
    halo: float = 0.0
    """Largest share of the local contrast that is removed or added: hazy or ringing edges."""


def augmented(
    pictures: Tensor, how: Augmentation, generator: torch.Generator, *, backgrounds: Tensor | None = None
) -> Tensor:
    """(b, 4, h, w) in 0..1, colours premultiplied by alpha -> (b, 3, h, w) in -1..1.

    Args:
        backgrounds: (b, 3) in 0..1, the colour behind each picture; white by default.
    """
    count = len(pictures)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * 2 - 1

    def some(share: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, generator=generator) < share).float()

    def slow(channels: int) -> Tensor:
        """Smooth random field (b, channels, h, w) of unit variance, at one random scale for the whole batch."""
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
    # Rotate around the grey axis: subtract the grey, and rotate the rest in its plane.
    rest = colours - grey
    side = (rest[:, [1, 2, 0]] - rest[:, [2, 0, 1]]) / 3**0.5
    angle = uniform(1, 1, 1) * torch.pi * some(how.rehued)
    turned = rest * angle.cos() + side * angle.sin()
    kept = 1 - some(how.greyed)
    return torch.minimum((grey + turned * kept).clamp(min=0), alpha)
