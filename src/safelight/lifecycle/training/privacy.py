"""Differentially private training (DP-SGD, arXiv:1607.00133): bounds what the result reveals of any single picture.

    each picture is in a step at random, independently     (Poisson sampling at batch / pictures)
    each picture's gradient is clipped to norm C           (which bounds its contribution to the sum)
    noise of deviation sigma C is added to the sum         (which hides that contribution)

Gradients are computed picture by picture: exact for every kind of layer, at the cost of one pass each. Sampling and
noise use the system's randomness instead of the recipe's seed, which is public; so private runs do not repeat, and a
resumed run draws new noise.

Clipped gradients and noise are rounded to multiples of a power of two and added as integers. The low bits of a sum of
floats reveal its terms (arXiv:2107.10138); here every sum lies on one grid, whatever the pictures are, and is the
rounding of the exact sum with the noise, to which the accountants' bounds apply.
"""

import math
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.lifecycle.training.accounting import Spent, noise_for, privacy_guarantee
from safelight.lifecycle.training.dataset import Dataset, TrainingPicture, make_batch, to_device
from safelight.lifecycle.training.recipe import PrivateRecipe, Recipe
from safelight.lifecycle.training.secret_noise import secret_gaussians

GRID_BITS = 20
"""The grid is 2^20 times finer than the clipping norm: coarser than float64, finer than the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    sigma: float
    """Noise multiplier."""
    rate: float
    """Probability that a picture is in a step."""
    clip: float
    """Clipping norm of a picture's gradient."""
    delta: float

    @property
    def grid(self) -> float:
        return 2.0 ** (math.floor(math.log2(self.clip)) - GRID_BITS)

    def spend(self, spent: Sequence[Spent]) -> list[Spent]:
        """The history with one more step."""
        *before, (sigma, rate, steps) = spent or [(self.sigma, self.rate, 0)]
        if (sigma, rate) == (self.sigma, self.rate):
            return [*before, (sigma, rate, steps + 1)]
        return [*spent, (self.sigma, self.rate, 1)]

    def guarantee(self, spent: Sequence[Spent]) -> dict[str, Any]:
        """The privacy guarantee of the steps so far, as recorded in the lineage."""
        numbers = {"noise_multiplier": self.sigma, "sample_rate": self.rate, "clip": self.clip}
        return privacy_guarantee(spent, self.delta) | numbers | {"steps": sum(steps for *_, steps in spent)}


def require_dp_available(recipe: Recipe, *, processes: int) -> None:
    """Raises InvalidRequest or UnsupportedOption if privacy is requested and impossible for any set of pictures."""
    if not isinstance(recipe, PrivateRecipe) or not recipe.dp:
        return
    if processes > 1:
        raise UnsupportedOption("dp", "private training runs on one device")
    if find_spec("opacus") is None:
        raise UnsupportedOption("dp", "Opacus is not installed: pip install 'safelight[dp]'")
    if recipe.holdout:
        raise InvalidRequest(
            "dp: holdout splits all pictures at random and measures without noise, so one additional picture would "
            "change more than its own gradient; keep held-out pictures in a separate folder (--held-out of the audit)"
        )


def privacy_for(recipe: PrivateRecipe, num_pictures: int) -> Privacy | None:
    """The noise and sampling of a private run; None if the recipe is not private.

    Raises:
        InvalidRequest: the guarantee is impossible with this number of pictures.
    """
    if not recipe.dp:
        return None
    if recipe.batch > num_pictures:
        raise InvalidRequest(f"dp: batch is {recipe.batch}, and must be at most the number of pictures, {num_pictures}")
    if recipe.dp_delta >= 1 / num_pictures:
        raise InvalidRequest(f"dp_delta {recipe.dp_delta:g} must be below 1 / {num_pictures}, the number of pictures")
    rate = recipe.batch / num_pictures
    sigma = noise_for(epsilon=recipe.dp_epsilon, delta=recipe.dp_delta, rate=rate, steps=recipe.steps)
    return Privacy(sigma=sigma, rate=rate, clip=recipe.dp_clip, delta=recipe.dp_delta)


def private_gradients(
    learner: nn.Module, params: Sequence[nn.Parameter], dataset: Dataset, privacy: Privacy, *, device: torch.device
) -> float | None:
    """Set each parameter's gradient to the noisy mean of clipped gradients.

    Returns:
        The mean loss, which is not private; None if no picture was sampled, and the step is noise alone.
    """
    secret = random.SystemRandom()
    totals = [torch.zeros(param.shape, dtype=torch.int64) for param in params]
    losses: list[float] = []
    for picture in poisson_sample(dataset.pictures, privacy.rate):
        caption = dataset.augment(picture.example.caption or "", secret)
        flipped = dataset.recipe.flip and secret.random() < 0.5
        batch = make_batch(
            [picture],
            [caption],
            [dataset.load_latent(picture, flipped)],
            seed=secrets.randbits(32),
            num_timesteps=dataset.num_timesteps,
            offset=dataset.recipe.offset_noise,
        )
        loss = learner(to_device(batch, device))
        add_clipped(totals, torch.autograd.grad(loss, params, allow_unused=True), clip=privacy.clip, grid=privacy.grid)
        losses.append(float(loss.detach()))
    expected = privacy.rate * len(dataset.pictures)
    for param, total in zip(params, totals, strict=True):
        noise = secret_gaussians(total.numel()).view(total.shape) * (privacy.sigma * privacy.clip / privacy.grid)
        noisy = (total + noise.round().long()).double() * (privacy.grid / expected)
        param.grad = noisy.to(param.dtype).to(param.device)
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else None


def poisson_sample(pictures: Sequence[TrainingPicture], rate: float) -> list[TrainingPicture]:
    """Choose each picture independently, by the system's randomness, as the accountants assume."""
    secret = random.SystemRandom()
    return [picture for picture in pictures if secret.random() < rate]


def add_clipped(totals: Sequence[Tensor], gradients: Sequence[Tensor | None], *, clip: float, grid: float) -> None:
    """Add one picture's gradient in multiples of `grid`, with a norm over all parameters of at most `clip`.

    Each gradient has the same shape as its total. A gradient that is not finite adds nothing: stopping there would
    reveal that the picture was in the step.
    """
    present = [
        (total, gradient.cpu().double())
        for total, gradient in zip(totals, gradients, strict=True)
        if gradient is not None
    ]
    norm = math.sqrt(sum(float(gradient.square().sum()) for _, gradient in present))
    if norm == 0 or not math.isfinite(norm):
        return
    # Rounding moves each number by half a grid at most; 1e-9 covers the rounding of `norm` itself.
    max_norm = clip * (1 - 1e-9) - grid / 2 * math.sqrt(sum(total.numel() for total, _ in present))
    factor = min(1.0, max_norm / norm) / grid
    for total, gradient in present:
        total += (gradient * factor).round().long()
