"""Pictures become latents and latents pictures, through a checkpoint's autoencoder.

    PIL -> from_pil -> (3, H, W) in [-1, 1] -> encode -> latents -> decode -> (b, 3, H, W) -> to_pil -> PIL

Large pictures go through in overlapping tiles, large batches in parts, and what half precision turns into NaN is
done again in float32.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from safelight.diffusion.shapes import Latents
from safelight.diffusion.tiling import ramp
from safelight.errors import JobFailed


@dataclass(frozen=True, slots=True)
class VAE:
    network: Any
    """An AutoencoderKL; its own annotations do not hold (`config` is no dict, `encode` takes any tensor)."""
    pixels_per_call: int = 1024 * 1024
    """Image pixels in one call of the network: about 4 GB in float32 for Stable Diffusion's."""
    tile: int = 128
    """Latents of a longer side are taken apart into squares of this side."""
    overlap: int = 32
    """Latent pixels that neighbouring tiles share, and over which they fade into one another."""

    @property
    def scale(self) -> int:
        """Image pixels per latent pixel, along one side."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)


class DecodeFailed(JobFailed):
    """Some pictures of a batch came out as NaN even in float32; the others are in `images`."""

    def __init__(self, rows: list[int], images: Tensor) -> None:
        named = ", ".join(str(row) for row in rows)
        super().__init__(f"the autoencoder made NaN, in float32 too, of picture {named} of a batch of {len(images)}")
        self.rows = rows
        self.images = images


@torch.no_grad()
def encode(vae: VAE, images: Tensor, noise: Tensor | None = None) -> Latents:
    """Latents, in float32, of pictures (b, 3, H, W) in [-1, 1].

    Args:
        noise: standard normal, in the shape of the latents, to draw from the posterior; without it, its mean.

    Raises:
        Undecodable: the network gave NaN.
    """
    mean, log_variance = moments(vae, images)
    drawn = mean if noise is None else mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise.to(mean)
    config = vae.network.config
    if (statistics := channel_statistics(vae, drawn)) is not None:
        channel_mean, channel_std = statistics
        return (drawn - channel_mean) * config.scaling_factor / channel_std
    return (drawn - (config.shift_factor or 0)) * config.scaling_factor


@torch.no_grad()
def encode_plainly(vae: VAE, images: Tensor) -> Latents:
    """The posterior's mean without the scaling of latents: how InstructPix2Pix is shown a picture."""
    return moments(vae, images)[0]


def moments(vae: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance."""
    both = run(vae, lambda part: vae.network.encode(part).latent_dist.parameters, images, shrink=vae.scale)
    mean, log_variance = both.chunk(2, dim=1)
    return mean, log_variance


@torch.no_grad()
def decode(vae: VAE, latents: Latents) -> Tensor:
    """Pictures (b, 3, H, W) in float32, [-1, 1] up to the network's overshoot.

    Raises:
        Undecodable: pictures that are NaN even in float32.
    """
    config = vae.network.config
    latents = latents.to(vae.network.device, torch.float32)
    if (statistics := channel_statistics(vae, latents)) is not None:
        channel_mean, channel_std = statistics
        unscaled = latents * channel_std / config.scaling_factor + channel_mean
    else:
        unscaled = latents / config.scaling_factor + (config.shift_factor or 0)
    return run(vae, lambda part: vae.network.decode(part).sample, unscaled, grow=vae.scale)


def channel_statistics(vae: VAE, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and spread per latent channel, where the configuration has both (some SDXL models)."""
    config = vae.network.config
    if config.latents_mean is None or config.latents_std is None:
        return None
    return like.new_tensor(config.latents_mean).view(1, -1, 1, 1), like.new_tensor(config.latents_std).view(1, -1, 1, 1)


Call = Callable[[Tensor], Tensor]


def run(vae: VAE, call: Call, inputs: Tensor, *, shrink: int = 1, grow: int = 1) -> Tensor:
    """Call the network on inputs of any size and number; its output is `inputs` / shrink * grow along each side."""
    assert inputs.shape[-2] % shrink == inputs.shape[-1] % shrink == 0, "sides must be multiples of the VAE's scale"
    height, width = inputs.shape[-2] // shrink, inputs.shape[-1] // shrink
    if max(height, width) <= vae.tile:
        outputs = in_parts(vae, call, inputs, pixels=height * width * vae.scale**2)
    else:
        corners = list(product(tile_starts(vae, height), tile_starts(vae, width)))
        tile_height, tile_width = min(vae.tile, height), min(vae.tile, width)
        tiles = torch.cat([
            inputs[..., y * shrink : (y + tile_height) * shrink, x * shrink : (x + tile_width) * shrink]
            for y, x in corners
        ])  # fmt: skip
        done = in_parts(vae, call, tiles, pixels=tile_height * tile_width * vae.scale**2)
        outputs = blend(
            done.view(len(corners), len(inputs), *done.shape[1:]),
            [(y * grow, x * grow) for y, x in corners],
            size=(height * grow, width * grow),
            fade=vae.overlap * grow,
        )
    bad = broken(outputs)
    if bad.any():
        raise DecodeFailed([row for row, is_bad in enumerate(bad) if is_bad], outputs)
    return outputs


def in_parts(vae: VAE, call: Call, inputs: Tensor, *, pixels: int) -> Tensor:
    """Call in parts of at most `pixels_per_call`; what half precision breaks is done again in float32."""
    rows = max(1, vae.pixels_per_call // pixels)
    network = vae.network
    inputs = inputs.to(network.device)
    outputs = torch.cat([call(part.to(network.dtype)).float() for part in torch.split(inputs, rows)])
    bad = broken(outputs)
    if network.dtype != torch.float32 and bad.any():
        with upcast(network):
            outputs[bad] = torch.cat([call(part.float()) for part in torch.split(inputs[bad], rows)])
    return outputs


def broken(pictures: Tensor) -> Tensor:
    """Which rows hold a NaN or an infinity."""
    return ~pictures.isfinite().flatten(1).all(dim=1)


@contextmanager
def upcast(network: nn.Module) -> Generator[None]:
    """The network in float32; going there and back leaves every weight as it was."""
    dtype = next(network.parameters()).dtype
    nn.Module.to(network, torch.float32)  # past diffusers' own `to`, which logs a warning each time
    try:
        yield
    finally:
        nn.Module.to(network, dtype)


def tile_starts(vae: VAE, length: int) -> list[int]:
    """Evenly spread, so that no tile is a sliver and neighbours share at least `overlap`."""
    if length <= vae.tile:
        return [0]
    gaps = -(-(length - vae.tile) // (vae.tile - vae.overlap))
    return [round(index * (length - vae.tile) / gaps) for index in range(gaps + 1)]


def blend(tiles: Tensor, corners: list[tuple[int, int]], *, size: tuple[int, int], fade: int) -> Tensor:
    """Put tiles (n, b, c, h, w) together; where they overlap, each fades out towards its edge."""
    _, batch, channels, tile_height, tile_width = tiles.shape
    mask = ramp(tile_height, fade, tiles)[:, None] * ramp(tile_width, fade, tiles)[None, :]
    total, weight = tiles.new_zeros(batch, channels, *size), tiles.new_zeros(size)
    for tile, (y, x) in zip(tiles, corners, strict=True):
        total[..., y : y + tile_height, x : x + tile_width] += tile * mask
        weight[y : y + tile_height, x : x + tile_width] += mask
    return total / weight


def to_pil(images: Tensor) -> list[Image.Image]:
    """Pictures (b, 3, H, W) in [-1, 1], rounded to bytes as diffusers' VaeImageProcessor rounds them."""
    levels = (images.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(pixels) for pixels in levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def from_pil(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1], as diffusers' VaeImageProcessor makes it; resizing is the caller's."""
    levels = torch.tensor(np.asarray(image.convert("RGB"))).float() / 255.0
    return (2.0 * levels - 1.0).permute(2, 0, 1).contiguous()
