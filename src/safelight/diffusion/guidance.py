"""Guidance: how far to go from what the network says of anything towards what it says of the prompt."""

import torch
from torch.nn.functional import conv2d, pad

from safelight.diffusion.shapes import Latent, Latents, Masks, PerRow

BLUR = 1.0
"""Standard deviation in latent pixels."""
REACH = 4
"""Latent pixels, of the blur to each side."""


def guide(cond: Latents, uncond: Latents, scale: PerRow) -> Latents:
    """Classifier-free guidance (arXiv:2207.12598); scale is the paper's w + 1."""
    return uncond + scale.view(-1, 1, 1, 1) * (cond - uncond)


def guide_image(guided: Latents, seeing: Latents, blind: Latents, scale: PerRow) -> Latents:
    """InstructPix2Pix's second guidance (arXiv:2211.09800, equation 3), towards a picture that the network sees.

    `guided` went from `seeing` towards the prompt; scale is the paper's s_I, and at 1 `blind` cancels out.
    """
    return guided + (scale.view(-1, 1, 1, 1) - 1) * (seeing - blind)


def guide_away(guided: Latents, good: Latents, worse: Latents, scale: PerRow) -> Latents:
    """Away from what the network says with a handicap, towards and past what it says without one.

    The handicap is perturbed attention (arXiv:2403.17377), or a latent that is blurred in part (arXiv:2210.00939).
    """
    return guided + scale.view(-1, 1, 1, 1) * (good - worse)


def degrade(latents: Latents, clean: Latents, masks: Masks, signal: PerRow) -> Latents:
    """The latents as they would be if the clean estimate were blurred where the mask is 1, under the noise they have.

    Self-attention guidance (arXiv:2210.00939) takes the estimate out, blurs it, and puts the same noise back: what
    changes is what the blur changes, times the share that a clean latent has at this noise level.
    """
    return latents + signal.view(-1, 1, 1, 1) * masks * (blurred(clean) - clean)


def blurred(latents: Latents) -> Latents:
    """By a Gaussian, mirrored at the edges."""
    channels = latents.shape[1]
    weights = torch.exp(-0.5 * (torch.arange(-REACH, REACH + 1, device=latents.device) / BLUR) ** 2)
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(channels, 1, -1, -1)
    return conv2d(pad(latents, (REACH,) * 4, mode="reflect"), kernel, groups=channels)


def compose(conds: Latents, uncond: Latent, weights: PerRow) -> Latent:
    """AND: what several prompts say together, each by how far it departs from the unconditional output.

    Composable Diffusion (arXiv:2206.01714, equation 11) at guidance 1; `guide` then goes as far as it is told.
    """
    return uncond + (weights.view(-1, 1, 1, 1) * (conds - uncond)).sum(dim=0)


def rescale(guided: Latents, cond: Latents, phi: PerRow) -> Latents:
    """Give the guided output back the contrast of the conditional one (arXiv:2305.08891, section 3.4).

    phi is the paper's: 0 leaves the guided output as it is, 1 matches its standard deviation fully.
    """
    phi = phi.view(-1, 1, 1, 1)
    contrast = cond.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guided * (phi * contrast + (1 - phi))
