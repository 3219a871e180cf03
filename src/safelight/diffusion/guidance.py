"""Guidance: extrapolate from the unconditional network output to the conditional one."""

import torch
from torch.nn.functional import conv2d, pad

from safelight.diffusion.shapes import Latent, Latents, Mask, Masks, PerRow

BLUR = 1.0
"""Standard deviation in latent pixels."""
RADIUS = 4
"""Radius of the blur, in latent pixels."""


def guide(cond: Latents, uncond: Latents, scale: PerRow) -> Latents:
    """Classifier-free guidance (arXiv:2207.12598); scale is the paper's w + 1."""
    return uncond + scale.view(-1, 1, 1, 1) * (cond - uncond)


def guide_image(guided: Latents, with_image: Latents, without_image: Latents, scale: PerRow) -> Latents:
    """InstructPix2Pix's image guidance (arXiv:2211.09800, equation 3).

    `guided` is the prompt guidance from `with_image`; scale is the paper's s_I, and at 1 `without_image` cancels out.
    """
    return guided + (scale.view(-1, 1, 1, 1) - 1) * (with_image - without_image)


def guide_away(guided: Latent, output: Latent, degraded: Latent, scale: float) -> Latent:
    """Guide away from a degraded network output.

    Degraded by perturbed attention (PAG, arXiv:2403.17377), or by a partly blurred latent (SAG, arXiv:2210.00939).
    """
    return guided + scale * (output - degraded)


def degrade(latent: Latent, clean: Latent, mask: Mask, signal: float) -> Latent:
    """Blur the clean estimate where the mask is 1, and keep the latent's noise.

    Self-attention guidance (arXiv:2210.00939) separates estimate and noise, blurs the estimate, and adds the noise
    again: the change equals that of the blur, times the clean latent's scale at this noise level.
    """
    return latent + signal * mask * (blurred(clean) - clean)


def blurred(latent: Latent) -> Latent:
    """Gaussian blur, mirrored at the edges."""
    channels = len(latent)
    weights = torch.exp(-0.5 * (torch.arange(-RADIUS, RADIUS + 1, device=latent.device) / BLUR) ** 2)
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(channels, 1, -1, -1)
    return conv2d(pad(latent, (RADIUS,) * 4, mode="reflect"), kernel, groups=channels)


def compose_regions(cond: Latent, regions: Latents, shares: Masks) -> Latent:
    """Prompts of regions: each prediction takes its share, 0 to 1, of every place; the prompt has what is left.

    A weighted mean of predictions under masks, as MultiDiffusion's region-based generation has it (arXiv:2302.08113,
    section 4.2). Where no region has a share, the prompt's prediction keeps its very bits.
    """
    return cond + (shares * (regions - cond)).sum(dim=0)


def compose(conds: Latents, uncond: Latent, weights: PerRow) -> Latent:
    """AND: combine several prompts by their weighted differences from the unconditional output.

    Composable Diffusion (arXiv:2206.01714, equation 11) at guidance 1; `guide` then applies the scale.
    """
    return uncond + (weights.view(-1, 1, 1, 1) * (conds - uncond)).sum(dim=0)


def rescale(guided: Latents, cond: Latents, phi: PerRow) -> Latents:
    """Rescale the guided output to the contrast of the conditional one (arXiv:2305.08891, section 3.4).

    phi is the paper's: 0 leaves the guided output unchanged, 1 matches its standard deviation fully.
    """
    phi = phi.view(-1, 1, 1, 1)
    contrast = cond.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guided * (phi * contrast + (1 - phi))
