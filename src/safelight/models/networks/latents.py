"""Encode images as latents and decode latents to images, by a checkpoint's autoencoder.

    PIL -> from_pil -> (3, height, width) in [-1, 1] -> encode -> latents
    latents -> decode -> (b, 3, height, width) -> to_pil -> PIL

Large images are processed in overlapping tiles, large batches in parts, and rows that become NaN in half precision
are computed again in float32.
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
    """An AutoencoderKL. Any, as its annotations are wrong (`config` is no dict, `encode` takes any tensor)."""
    pixels_per_call: int = 1024 * 1024
    """Image pixels in one call of the network: about 4 GB in float32 for Stable Diffusion's."""
    tile: int = 128
    """Latents with a longer side are split into square tiles of this side."""
    overlap: int = 32
    """Latent pixels that neighbouring tiles share, over which they are blended."""

    @property
    def scale(self) -> int:
        """Image pixels per latent pixel, along one side."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)


class DecodeFailed(JobFailed):
    """Some images of a batch are NaN even in float32: `rows`. The others are in `images`, (b, 3, height, width)."""

    def __init__(self, rows: list[int], images: Tensor) -> None:
        named = ", ".join(str(row) for row in rows)
        super().__init__(
            f"the autoencoder's output is NaN, even in float32, for picture {named} of a batch of {len(images)}"
        )
        self.rows = rows
        self.images = images


@torch.no_grad()
def encode(vae: VAE, images: Tensor, noise: Tensor | None = None) -> Latents:
    """Return latents, in float32, of images (b, 3, height, width) in [-1, 1].

    Args:
        noise: standard normal, (b, c, h, w), to sample the posterior; without it, the mean is returned.

    Raises:
        DecodeFailed: the network returned NaN.
    """
    mean, log_variance = moments(vae, images)
    sample = mean if noise is None else mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise.to(mean)
    config = vae.network.config
    if (statistics := channel_statistics(vae, sample)) is not None:
        channel_mean, channel_std = statistics
        return (sample - channel_mean) * config.scaling_factor / channel_std
    return (sample - (config.shift_factor or 0)) * config.scaling_factor


@torch.no_grad()
def encode_unscaled(vae: VAE, images: Tensor) -> Latents:
    """Return the posterior's mean, unscaled, of images (b, 3, height, width): InstructPix2Pix's image conditioning."""
    return moments(vae, images)[0]


def moments(vae: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log variance, (b, c, h, w) each, of images (b, 3, height, width)."""
    mean_and_log_variance = run(
        vae, lambda part: vae.network.encode(part).latent_dist.parameters, images, shrink=vae.scale
    )
    mean, log_variance = mean_and_log_variance.chunk(2, dim=1)
    return mean, log_variance


@torch.no_grad()
def decode(vae: VAE, latents: Latents) -> Tensor:
    """Return images (b, 3, height, width) in float32, in [-1, 1] up to the network's overshoot.

    Raises:
        DecodeFailed: images that are NaN even in float32.
    """
    config = vae.network.config
    latents = latents.to(vae.network.device, torch.float32)
    if (statistics := channel_statistics(vae, latents)) is not None:
        channel_mean, channel_std = statistics
        unscaled = latents * channel_std / config.scaling_factor + channel_mean
    else:
        unscaled = latents / config.scaling_factor + (config.shift_factor or 0)
    return run(vae, lambda part: vae.network.decode(part).sample, unscaled, grow=vae.scale)


def channel_statistics(vae: VAE, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return mean and standard deviation per latent channel, (1, c, 1, 1), if the configuration has both (some SDXL
    models)."""
    config = vae.network.config
    if config.latents_mean is None or config.latents_std is None:
        return None
    return tensor.new_tensor(config.latents_mean).view(1, -1, 1, 1), tensor.new_tensor(config.latents_std).view(
        1, -1, 1, 1
    )


Call = Callable[[Tensor], Tensor]


def run(vae: VAE, call: Call, inputs: Tensor, *, shrink: int = 1, grow: int = 1) -> Tensor:
    """Call the network on inputs (b, c, h, w) of any size and number.

    Returns (b, c, h / shrink * grow, w / shrink * grow); the channels are those of the call.
    """
    assert inputs.shape[-2] % shrink == inputs.shape[-1] % shrink == 0, "sides must be multiples of the VAE's scale"
    height, width = inputs.shape[-2] // shrink, inputs.shape[-1] // shrink
    if max(height, width) <= vae.tile:
        outputs = run_in_batches(vae, call, inputs, pixels=height * width * vae.scale**2)
    else:
        corners = list(product(tile_starts(vae, height), tile_starts(vae, width)))
        tile_height, tile_width = min(vae.tile, height), min(vae.tile, width)
        tiles = torch.cat([
            inputs[..., y * shrink : (y + tile_height) * shrink, x * shrink : (x + tile_width) * shrink]
            for y, x in corners
        ])  # fmt: skip
        done = run_in_batches(vae, call, tiles, pixels=tile_height * tile_width * vae.scale**2)
        outputs = blend(
            done.view(len(corners), len(inputs), *done.shape[1:]),
            [(y * grow, x * grow) for y, x in corners],
            size=(height * grow, width * grow),
            fade=vae.overlap * grow,
        )
    failed = non_finite(outputs)
    if failed.any():
        raise DecodeFailed([row for row, is_failed in enumerate(failed) if is_failed], outputs)
    return outputs


def run_in_batches(vae: VAE, call: Call, inputs: Tensor, *, pixels: int) -> Tensor:
    """Call on (b, c, h, w) in parts of at most `pixels_per_call`; rows that become NaN are redone in float32."""
    rows = max(1, vae.pixels_per_call // pixels)
    network = vae.network
    inputs = inputs.to(network.device)
    outputs = torch.cat([call(part.to(network.dtype)).float() for part in torch.split(inputs, rows)])
    failed = non_finite(outputs)
    if network.dtype != torch.float32 and failed.any():
        with upcast(network):
            outputs[failed] = torch.cat([call(part.float()) for part in torch.split(inputs[failed], rows)])
    return outputs


def non_finite(pictures: Tensor) -> Tensor:
    """Return which rows of (b, c, h, w) hold a NaN or an infinity, as (b,) of bool."""
    return ~pictures.isfinite().flatten(1).all(dim=1)


@contextmanager
def upcast(network: nn.Module) -> Generator[None]:
    """Run the network in float32 within the context; casting there and back leaves every weight unchanged."""
    dtype = next(network.parameters()).dtype
    nn.Module.to(network, torch.float32)  # past diffusers' own `to`, which logs a warning each time
    try:
        yield
    finally:
        nn.Module.to(network, dtype)


def tile_starts(vae: VAE, length: int) -> list[int]:
    """Return evenly spread tile positions, so that no tile is a sliver and neighbours share at least `overlap`."""
    if length <= vae.tile:
        return [0]
    gaps = -(-(length - vae.tile) // (vae.tile - vae.overlap))
    return [round(index * (length - vae.tile) / gaps) for index in range(gaps + 1)]


def blend(tiles: Tensor, corners: list[tuple[int, int]], *, size: tuple[int, int], fade: int) -> Tensor:
    """Blend tiles (n, b, c, h, w) into (b, c, h, w); where they overlap, each fades out towards its edge."""
    _, batch, channels, tile_height, tile_width = tiles.shape
    mask = ramp(tile_height, fade, tiles)[:, None] * ramp(tile_width, fade, tiles)[None, :]
    total, weight = tiles.new_zeros(batch, channels, *size), tiles.new_zeros(size)
    for tile, (y, x) in zip(tiles, corners, strict=True):
        total[..., y : y + tile_height, x : x + tile_width] += tile * mask
        weight[y : y + tile_height, x : x + tile_width] += mask
    return total / weight


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert images (b, 3, height, width) in [-1, 1], rounded to bytes as diffusers' VaeImageProcessor does."""
    levels = (images.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(pixels) for pixels in levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def from_pil(image: Image.Image) -> Tensor:
    """Return (3, height, width) in [-1, 1], as diffusers' VaeImageProcessor does; the caller resizes."""
    levels = torch.tensor(np.asarray(image.convert("RGB"))).float() / 255.0
    return (2.0 * levels - 1.0).permute(2, 0, 1).contiguous()
