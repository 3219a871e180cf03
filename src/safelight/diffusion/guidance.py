"""Guidance: how far to go from what the network says of anything towards what it says of the prompt."""

from safelight.diffusion.shapes import Latent, Latents, PerRow


def guide(cond: Latents, uncond: Latents, scale: PerRow) -> Latents:
    """Classifier-free guidance (arXiv:2207.12598); scale is the paper's w + 1."""
    return uncond + scale.view(-1, 1, 1, 1) * (cond - uncond)


def look(guided: Latents, seeing: Latents, blind: Latents, scale: PerRow) -> Latents:
    """InstructPix2Pix's second guidance (arXiv:2211.09800, equation 3), towards a picture that the network sees.

    `guided` went from `seeing` towards the prompt; scale is the paper's s_I, and at 1 `blind` cancels out.
    """
    return guided + (scale.view(-1, 1, 1, 1) - 1) * (seeing - blind)


def perturb(guided: Latents, cond: Latents, perturbed: Latents, scale: PerRow) -> Latents:
    """Perturbed-attention guidance (arXiv:2403.17377): away from what the network draws without structure."""
    return guided + scale.view(-1, 1, 1, 1) * (cond - perturbed)


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
