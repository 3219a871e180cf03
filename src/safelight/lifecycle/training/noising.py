"""The forward diffusion: noisy latents, the network's target, and the loss weight of each timestep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from safelight.diffusion.shapes import Latents, PerRow
from safelight.errors import UnsupportedOption

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


@dataclass(frozen=True, slots=True)
class NoiseLevels:
    """The model's own noise levels: noisy = signal * latents + sigma * noise, with signal and sigma (timesteps,)."""

    signal: Tensor
    sigma: Tensor
    prediction: str

    @staticmethod
    def of(scheduler: Mapping[str, Any], device: torch.device) -> "NoiseLevels":
        """
        Raises:
            UnsupportedOption: the model's objective is not one of SD 1, 2 and SDXL.
        """
        prediction = str(scheduler.get("prediction_type", "epsilon"))
        if str(scheduler.get("_class_name")).startswith(("EDM", "FlowMatch")) or prediction not in (
            "epsilon",
            "v_prediction",
        ):
            kind = f"{scheduler.get('_class_name')} with {prediction}"
            raise UnsupportedOption("base", f"training supports epsilon and v-prediction, not {kind}")
        if prediction == "epsilon" and scheduler.get("rescale_betas_zero_snr"):
            raise UnsupportedOption(
                "base", "epsilon-prediction is undefined on pure noise: zero SNR needs v-prediction"
            )
        alphas = DDPMScheduler(**{name: scheduler[name] for name in BETAS if name in scheduler}).alphas_cumprod.float()
        return NoiseLevels(alphas.sqrt().to(device), (1 - alphas).sqrt().to(device), prediction)

    def __len__(self) -> int:
        return len(self.signal)

    def noisy(self, latents: Latents, noise: Latents, timesteps: Tensor) -> Latents:
        """Latents (b, c, h, w) with noise added for the timesteps (b,)."""
        signal, sigma = self.at(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Latents, noise: Latents, timesteps: Tensor) -> Latents:
        """(b, c, h, w) the noise, or v = signal * noise - sigma * latents (arXiv:2202.00512); timesteps (b,)."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self.at(timesteps)
        return signal * noise - sigma * latents

    def weights(self, timesteps: Tensor, gamma: float | None) -> PerRow:
        """min-SNR loss weights (b,) of timesteps (b,) (arXiv:2303.09556); 1 at zero SNR, so that it is trained, too."""
        if gamma is None:
            return torch.ones_like(self.signal[timesteps])
        snr = (self.signal[timesteps] / self.sigma[timesteps]).square()
        weights = snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)
        return torch.where(snr == 0, torch.ones_like(snr), weights)

    def at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and sigma of timesteps (b,), each (b, 1, 1, 1)."""
        return self.signal[timesteps].view(-1, 1, 1, 1), self.sigma[timesteps].view(-1, 1, 1, 1)


def errors(outputs: Latents, targets: Latents, masks: Tensor | None) -> PerRow:
    """Mean squared error of each picture, weighted by its mask (b, 1, h, w)."""
    squared = (outputs.float() - targets.float()).square()
    if masks is None:
        return squared.mean(dim=(1, 2, 3))
    masks = masks.expand_as(squared)
    return (squared * masks).sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3)).clamp(min=1e-6)
