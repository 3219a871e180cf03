"""Previews of latents: one small matrix maps each latent pixel to a colour.

The image is as small as the latents, and takes microseconds where decoding takes seconds. For the autoencoders of
Stable Diffusion 1, 2 and XL the matrix is known; for any other it is fitted once.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from safelight.diffusion.shapes import Latents
from safelight.models.networks.latents import VAE, decode, encode, to_pil


@dataclass(frozen=True, slots=True)
class Factors:
    """rgb = latent @ weights + bias, with rgb in [-1, 1]."""

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)


# Fitted by the community by regression on encoded images; the same numbers as in ComfyUI.
SD = Factors((
    (0.3512, 0.2297, 0.3227),
    (0.3250, 0.4974, 0.2350),
    (-0.2829, 0.1762, 0.2721),
    (-0.2120, -0.2616, -0.7177),
))  # fmt: skip
SDXL = Factors(
    (
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
    ),
    bias=(0.1084, -0.0175, -0.0011),
)
KNOWN = {0.18215: SD, 0.13025: SDXL}
"""By scaling factor, for autoencoders of Stable Diffusion's shape."""
STABLE_DIFFUSION_CHANNELS = (128, 256, 512, 512)


def factors_for(vae: VAE) -> Factors:
    """Return the known factors for Stable Diffusion's autoencoders; for others they are fitted."""
    config = vae.network.config
    usual = tuple(config.block_out_channels) == STABLE_DIFFUSION_CHANNELS and config.latents_mean is None
    known = KNOWN.get(config.scaling_factor) if usual and config.latent_channels == 4 else None
    return known or fit_factors(vae)


def fit_factors(vae: VAE) -> Factors:
    """Fit by least squares the mean colours that the latents of coloured patches decode to."""
    latents = encode(vae, patches(side=16 * vae.scale).to(vae.network.device))
    colours = nn.functional.avg_pool2d(decode(vae, latents), vae.scale).clamp(-1, 1)
    known = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
    known, wanted = (values.movedim(1, -1).flatten(0, 2).cpu() for values in (known, colours))
    solution = np.linalg.lstsq(known.numpy(), wanted.numpy())[0]
    *weights, bias = [(float(red), float(green), float(blue)) for red, green, blue in solution]
    return Factors(tuple(weights), bias)


def patches(*, side: int) -> Tensor:
    """Return images of random coloured squares, coarse and fine, (12, 3, side, side) in [-1, 1].

    Random latents are unsuitable: a decoder turns noise into noise.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    grids = [torch.rand(3, 3, cells, cells, generator=generator) * 2 - 1 for cells in (1, 2, 4, 8)]
    return torch.cat([nn.functional.interpolate(grid, (side, side)) for grid in grids])


def preview(denoised: Latents, factors: Factors) -> list[Image.Image]:
    """Return one image per latent, of the latents' height and width."""
    latents = denoised.float()
    colours = torch.einsum("b c h w, c r -> b r h w", latents, latents.new_tensor(factors.weights))
    return to_pil(colours + latents.new_tensor(factors.bias).view(1, 3, 1, 1))
