"""Differentially private training (DP-SGD, arXiv:1607.00133): what the result says of any one picture is bounded.

    each picture is in a step by chance, on its own        (Poisson sampling at batch / pictures)
    each picture's gradient is cut to length C             (so that one can change the sum by so much)
    noise of deviation sigma C is added to the sum         (which hides whether it did)

Opacus counts what that promises (epsilon, delta) and finds the sigma for a wished epsilon. Gradients are taken picture
by picture: exact for every kind of layer, at the price of one pass each. Sampling and noise come from the system's
randomness and not from the recipe's seed, which the result tells everybody; so a private run does not repeat exactly.
"""

import random
import secrets
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.lifecycle.training.dataset import Dataset, assemble, placed
from safelight.lifecycle.training.recipe import PrivateRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    sigma: float
    """Noise multiplier."""
    rate: float
    """How often a picture is in a step."""
    clip: float
    delta: float

    def spent(self, steps: int) -> dict[str, float]:
        """What these steps promise."""
        from opacus.accountants import RDPAccountant  # pyright: ignore[reportMissingImports]

        accountant: Any = RDPAccountant()
        accountant.history = [(self.sigma, self.rate, steps)]
        with quiet():
            epsilon = float(accountant.get_epsilon(self.delta)) if steps else 0.0
        return {"epsilon": epsilon, "delta": self.delta, "noise_multiplier": self.sigma, "clip": self.clip}


def privacy_for(recipe: PrivateRecipe, num_pictures: int, *, processes: int) -> Privacy | None:
    """None where nothing private was asked for.

    Raises:
        InvalidRequest, UnsupportedOption: it was, and cannot be had.
    """
    if not recipe.dp:
        return None
    if processes > 1:
        raise UnsupportedOption("dp", "private training runs on one device")
    if recipe.batch > num_pictures:
        raise InvalidRequest(f"dp: a batch of {recipe.batch} of {num_pictures} pictures; take at most so many")
    if recipe.dp_delta >= 1 / num_pictures:
        raise InvalidRequest(f"dp_delta {recipe.dp_delta:g} must be below 1 / {num_pictures}, the number of pictures")
    try:
        from opacus.accountants.utils import get_noise_multiplier  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise UnsupportedOption("dp", "Opacus is not installed: pip install 'safelight[dp]'") from None
    rate = recipe.batch / num_pictures
    with quiet():
        sigma = get_noise_multiplier(
            target_epsilon=recipe.dp_epsilon,
            target_delta=recipe.dp_delta,
            sample_rate=rate,
            steps=recipe.steps,
            accountant="rdp",
        )
    return Privacy(sigma=float(sigma), rate=rate, clip=recipe.dp_clip, delta=recipe.dp_delta)


def quiet() -> Any:
    """Opacus warns where its bound could be tighter; it holds all the same."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def private_gradients(
    learner: nn.Module, params: list[nn.Parameter], dataset: Dataset, privacy: Privacy, *, device: torch.device
) -> Tensor:
    """Leave in each parameter the noisy mean of cut gradients; returns the mean loss, which is not private."""
    secret = random.SystemRandom()
    totals = [torch.zeros_like(param) for param in params]
    losses: list[Tensor] = []
    for one in dataset.own:
        if secret.random() >= privacy.rate:
            continue
        caption = dataset.say(one.example.caption or "", secret)
        flipped = dataset.recipe.flip and secret.random() < 0.5
        batch = assemble(
            [one],
            [caption],
            [dataset.latent(one, flipped)],
            seed=secrets.randbits(63),
            num_timesteps=dataset.num_timesteps,
            offset=dataset.recipe.offset_noise,
        )
        loss = learner(placed(batch, device))
        gradients = torch.autograd.grad(loss, params, allow_unused=True)
        add_cut(totals, gradients, privacy.clip)
        losses.append(loss.detach())
    generator = torch.Generator(device).manual_seed(secrets.randbits(63))
    expected = privacy.rate * len(dataset.own)
    for param, total in zip(params, totals, strict=True):
        noise = torch.randn(total.shape, generator=generator, device=device)
        param.grad = (total + privacy.sigma * privacy.clip * noise) / expected
    return torch.stack(losses).mean() if losses else torch.zeros((), device=device)


def add_cut(totals: list[Tensor], gradients: tuple[Tensor | None, ...], clip: float) -> None:
    """Add one picture's gradient, no longer than `clip` over all parameters together."""
    known = [gradient for gradient in gradients if gradient is not None]
    length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in known]))
    factor = (clip / (length + 1e-6)).clamp(max=1)
    for total, gradient in zip(totals, gradients, strict=True):
        if gradient is not None:
            total.add_(gradient * factor)
