"""How well a model knows each of these pictures: its denoising loss on it.

All pictures get the same noise at the same levels, so that what differs is the picture. A picture that was trained on
has a lower loss than one like it that was not, the more so the more it was learnt by heart (arXiv:2302.01316).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.dataset import Ready, assemble, encode_picture, placed
from safelight.lifecycle.training.loop import Learner
from safelight.lifecycle.training.noising import NoiseLevels
from safelight.models.networks.load import Model

LEVELS = 8
SEED = 0


@torch.no_grad()
def denoising_losses(
    model: Model,
    pictures: Sequence[tuple[Ready, str]],
    *,
    words: Mapping[str, Sequence[Tensor]] | None = None,
    heard: Callable[[], None] = lambda: None,
) -> Tensor:
    """(n,) the mean squared error of each picture with its caption, over noise levels from little to nearly all.

    `words` are those of an embedding, with their vectors for each text encoder; `heard` is called after each picture.
    """
    device = model.placement.device
    levels = NoiseLevels.of(model.description.scheduler, device)
    reader = CaptionEncoder(model, clip_skip=model.description.defaults.clip_skip, remember=True, words=words)
    learner = Learner(model, reader, levels, snr_gamma=None).eval()
    timesteps = (torch.linspace(0.05, 0.95, LEVELS) * len(levels)).long()
    losses: list[Tensor] = []
    for ready, caption in pictures:
        latent = encode_picture(ready, model.vae, mask="none", flipped=False)
        rows = assemble([ready] * LEVELS, [caption] * LEVELS, [latent] * LEVELS, seed=SEED, num_timesteps=len(levels))
        rows.timesteps.copy_(timesteps)
        losses.append(learner.errors(placed(rows, device)).mean().cpu())
        heard()
    return torch.stack(losses)
