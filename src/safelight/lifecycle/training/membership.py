"""Denoising losses of single pictures, for membership inference.

All pictures get the same noise at the same levels, so only the picture differs. A picture that was trained on has a
lower loss than a similar one that was not; the stronger the memorisation, the lower (arXiv:2302.01316).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.dataset import TrainingPicture, encode_picture, make_batch, to_device
from safelight.lifecycle.training.loop import Learner
from safelight.lifecycle.training.noising import NoiseLevels
from safelight.models.networks.load import Model

LEVELS = 8
SEED = 0


@torch.no_grad()
def denoising_losses(
    model: Model,
    pictures: Sequence[tuple[TrainingPicture, str]],
    *,
    embeddings: Mapping[str, Sequence[Tensor]] | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> Tensor:
    """(n,) the mean squared error of each picture with its caption, over noise levels from 5 % to 95 %.

    Args:
        embeddings: by word, the vectors (n, dim) of an embedding for each text encoder.
        on_picture: called after each picture.
    """
    device = model.placement.device
    levels = NoiseLevels.of(model.description.scheduler, device)
    clip_skip = model.description.defaults.clip_skip
    caption_encoder = CaptionEncoder(model, clip_skip=clip_skip, cache=True, embeddings=embeddings)
    learner = Learner(model, caption_encoder, levels, snr_gamma=None).eval()
    timesteps = (torch.linspace(0.05, 0.95, LEVELS) * len(levels)).long()
    losses: list[Tensor] = []
    for picture, caption in pictures:
        latent = encode_picture(picture, model.vae, mask="none", flipped=False)
        batch = make_batch(
            [picture] * LEVELS, [caption] * LEVELS, [latent] * LEVELS, seed=SEED, num_timesteps=len(levels)
        )
        batch.timesteps.copy_(timesteps)
        losses.append(learner.errors(to_device(batch, device)).mean().cpu())
        on_picture()
    return torch.stack(losses)
