"""What the network is asked at each noise level, and how much its answer counts."""

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
    """The model's own: latents * signal + noise * sigma, by timestep."""

    signal: Tensor
    sigma: Tensor
    prediction: str

    @staticmethod
    def of(scheduler: Mapping[str, Any], device: torch.device) -> "NoiseLevels":
        """
        Raises:
            UnsupportedOption: the model was trained in another way than SD 1, 2 and SDXL.
        """
        prediction = str(scheduler.get("prediction_type", "epsilon"))
        if str(scheduler.get("_class_name")).startswith(("EDM", "FlowMatch")) or prediction not in (
            "epsilon",
            "v_prediction",
        ):
            kind = f"{scheduler.get('_class_name')} with {prediction}"
            raise UnsupportedOption("base", f"training knows epsilon and v-prediction, not {kind}")
        if prediction == "epsilon" and scheduler.get("rescale_betas_zero_snr"):
            raise UnsupportedOption("base", "epsilon cannot be told from pure noise: zero SNR needs v-prediction")
        alphas = DDPMScheduler(**{name: scheduler[name] for name in BETAS if name in scheduler}).alphas_cumprod.float()
        return NoiseLevels(alphas.sqrt().to(device), (1 - alphas).sqrt().to(device), prediction)

    def __len__(self) -> int:
        return len(self.signal)

    def noisy(self, latents: Latents, noise: Latents, timesteps: Tensor) -> Latents:
        signal, sigma = self.at(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Latents, noise: Latents, timesteps: Tensor) -> Latents:
        """The noise, or v = signal * noise - sigma * latents (arXiv:2202.00512)."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self.at(timesteps)
        return signal * noise - sigma * latents

    def weights(self, timesteps: Tensor, gamma: float | None) -> PerRow:
        """min-SNR (arXiv:2303.09556); where there is no signal at all, 1, so that the first step is still learnt."""
        if gamma is None:
            return torch.ones_like(self.signal[timesteps])
        snr = (self.signal[timesteps] / self.sigma[timesteps]).square()
        weights = snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)
        return torch.where(snr == 0, torch.ones_like(snr), weights)

    def at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self.signal[timesteps].view(-1, 1, 1, 1), self.sigma[timesteps].view(-1, 1, 1, 1)


def errors(outputs: Latents, targets: Latents, masks: Tensor | None) -> PerRow:
    """Mean squared error of each picture, of what its mask (b, 1, h, w) keeps."""
    squared = (outputs.float() - targets.float()).square()
    if masks is None:
        return squared.mean(dim=(1, 2, 3))
    kept = masks.expand_as(squared)
    return (squared * kept).sum(dim=(1, 2, 3)) / kept.sum(dim=(1, 2, 3)).clamp(min=1e-6)
