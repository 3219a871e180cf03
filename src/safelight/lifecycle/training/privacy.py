"""Differentially private training (DP-SGD, arXiv:1607.00133): what the result says of any one picture is bounded.

    each picture is in a step by chance, on its own        (Poisson sampling at batch / pictures)
    each picture's gradient is cut to length C             (so that one can change the sum by so much)
    noise of deviation sigma C is added to the sum         (which hides whether it did)

Gradients are taken picture by picture: exact for every kind of layer, at the price of one pass each. Sampling and noise
are the system's randomness and not the recipe's seed, which the result tells everybody; so no two private runs are
alike, and one that is taken up again draws anew.

Cut gradients and noise are rounded to whole multiples of a power of two and added as integers. A sum of floats has low
bits that tell what was added up (arXiv:2107.10138); here every sum lies on one grid, whatever the pictures are, and is
the rounding of the exact sum with the noise, to which the accountants' bounds apply.
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
from safelight.lifecycle.training.accounting import Spent, noise_for, promise
from safelight.lifecycle.training.dataset import Dataset, Ready, assemble, placed
from safelight.lifecycle.training.recipe import PrivateRecipe, Recipe
from safelight.lifecycle.training.secret_noise import secret_gaussians

GRID_BITS = 20
"""The grid is so much finer than the clip: coarse beside float64, fine beside the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    sigma: float
    """Noise multiplier."""
    rate: float
    """How often a picture is in a step."""
    clip: float
    delta: float

    @property
    def grid(self) -> float:
        return 2.0 ** (math.floor(math.log2(self.clip)) - GRID_BITS)

    def spend(self, spent: Sequence[Spent]) -> list[Spent]:
        """With one more step."""
        *before, (sigma, rate, steps) = spent or [(self.sigma, self.rate, 0)]
        if (sigma, rate) == (self.sigma, self.rate):
            return [*before, (sigma, rate, steps + 1)]
        return [*spent, (self.sigma, self.rate, 1)]

    def told(self, spent: Sequence[Spent]) -> dict[str, Any]:
        """What the steps that were taken promise."""
        numbers = {"noise_multiplier": self.sigma, "sample_rate": self.rate, "clip": self.clip}
        return promise(spent, self.delta) | numbers | {"steps": sum(steps for *_, steps in spent)}


def require_private(recipe: Recipe, *, processes: int) -> None:
    """Raises InvalidRequest or UnsupportedOption where privacy is asked for and cannot be, whatever the pictures."""
    if not isinstance(recipe, PrivateRecipe) or not recipe.dp:
        return
    if processes > 1:
        raise UnsupportedOption("dp", "private training runs on one device")
    if find_spec("opacus") is None:
        raise UnsupportedOption("dp", "Opacus is not installed: pip install 'safelight[dp]'")
    if recipe.holdout:
        raise InvalidRequest(
            "dp: holdout draws lots among all pictures at once and measures without noise, so one picture more would "
            "change far more than its own part; keep pictures aside in a folder of their own (--held-out of the audit)"
        )


def privacy_for(recipe: PrivateRecipe, num_pictures: int) -> Privacy | None:
    """None where nothing private was asked for.

    Raises:
        InvalidRequest: it was, and cannot be had of so many pictures.
    """
    if not recipe.dp:
        return None
    if recipe.batch > num_pictures:
        raise InvalidRequest(f"dp: a batch of {recipe.batch} of {num_pictures} pictures; take at most so many")
    if recipe.dp_delta >= 1 / num_pictures:
        raise InvalidRequest(f"dp_delta {recipe.dp_delta:g} must be below 1 / {num_pictures}, the number of pictures")
    rate = recipe.batch / num_pictures
    sigma = noise_for(epsilon=recipe.dp_epsilon, delta=recipe.dp_delta, rate=rate, steps=recipe.steps)
    return Privacy(sigma=sigma, rate=rate, clip=recipe.dp_clip, delta=recipe.dp_delta)


def private_gradients(
    learner: nn.Module, params: Sequence[nn.Parameter], dataset: Dataset, privacy: Privacy, *, device: torch.device
) -> float | None:
    """Leave in each parameter the noisy mean of cut gradients; returns the mean loss, which is not private.

    It is None where chance chose no picture: a step all the same, of noise alone.
    """
    secret = random.SystemRandom()
    totals = [torch.zeros(param.shape, dtype=torch.int64) for param in params]
    losses: list[float] = []
    for one in chosen(dataset.own, privacy.rate):
        caption = dataset.say(one.example.caption or "", secret)
        flipped = dataset.recipe.flip and secret.random() < 0.5
        batch = assemble(
            [one],
            [caption],
            [dataset.latent(one, flipped)],
            seed=secrets.randbits(32),
            num_timesteps=dataset.num_timesteps,
            offset=dataset.recipe.offset_noise,
        )
        loss = learner(placed(batch, device))
        add_cut(totals, torch.autograd.grad(loss, params, allow_unused=True), clip=privacy.clip, grid=privacy.grid)
        losses.append(float(loss.detach()))
    expected = privacy.rate * len(dataset.own)
    for param, total in zip(params, totals, strict=True):
        noise = secret_gaussians(total.numel()).view(total.shape) * (privacy.sigma * privacy.clip / privacy.grid)
        noisy = (total + noise.round().long()).double() * (privacy.grid / expected)
        param.grad = noisy.to(param.dtype).to(param.device)
    known = [loss for loss in losses if math.isfinite(loss)]
    return sum(known) / len(known) if known else None


def chosen(pictures: Sequence[Ready], rate: float) -> list[Ready]:
    """Each by chance and on its own, by the system's randomness: as the accountants suppose."""
    secret = random.SystemRandom()
    return [one for one in pictures if secret.random() < rate]


def add_cut(totals: Sequence[Tensor], gradients: Sequence[Tensor | None], *, clip: float, grid: float) -> None:
    """Add one picture's gradient in multiples of `grid`, no longer than `clip` over all parameters together.

    One that is no number adds nothing: stopping there would tell that the picture was in the step.
    """
    found = [
        (total, gradient.cpu().double())
        for total, gradient in zip(totals, gradients, strict=True)
        if gradient is not None
    ]
    length = math.sqrt(sum(float(gradient.square().sum()) for _, gradient in found))
    if length == 0 or not math.isfinite(length):
        return
    # Rounding moves each number by half a grid at most; the billionth is for the rounding of `length` itself.
    longest = clip * (1 - 1e-9) - grid / 2 * math.sqrt(sum(total.numel() for total, _ in found))
    factor = min(1.0, longest / length) / grid
    for total, gradient in found:
        total += (gradient * factor).round().long()
