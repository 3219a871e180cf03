"""Noise levels, targets, weights and masks: closed forms, and what diffusers computes."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from tests.tiny_models import FLOW_SCHEDULER, SD1_SCHEDULER, SD2_SCHEDULER, ZERO_SNR_SCHEDULER

from safelight.errors import UnsupportedOption
from safelight.lifecycle.training.noising import NoiseLevels, errors

CPU = torch.device("cpu")
LATENTS, NOISE = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
TIMESTEPS = torch.tensor([0, 500, 999])


@pytest.mark.parametrize("scheduler", [SD1_SCHEDULER, SD2_SCHEDULER, ZERO_SNR_SCHEDULER])
def test_noise_and_target_are_those_of_diffusers(scheduler: dict[str, object]) -> None:
    levels, theirs = NoiseLevels.of(scheduler, CPU), DDPMScheduler.from_config(scheduler)
    torch.testing.assert_close(
        levels.noisy(LATENTS, NOISE, TIMESTEPS), theirs.add_noise(LATENTS, NOISE, TIMESTEPS), rtol=1e-5, atol=1e-6
    )
    velocity = theirs.get_velocity(LATENTS, NOISE, TIMESTEPS)
    wanted = NOISE if scheduler is SD1_SCHEDULER else velocity
    torch.testing.assert_close(levels.target(LATENTS, NOISE, TIMESTEPS), wanted, rtol=1e-5, atol=1e-6)


def test_min_snr_weights_are_the_papers() -> None:
    for scheduler, divisor in ((SD1_SCHEDULER, 0), (SD2_SCHEDULER, 1)):
        snr = compute_snr(DDPMScheduler.from_config(scheduler), TIMESTEPS)
        wanted = snr.clamp(max=5.0) / (snr + divisor)
        torch.testing.assert_close(NoiseLevels.of(scheduler, CPU).weights(TIMESTEPS, 5.0), wanted)


def test_pure_noise_still_counts_where_there_is_no_signal() -> None:
    levels = NoiseLevels.of(ZERO_SNR_SCHEDULER, CPU)
    assert levels.signal[999] == 0
    assert levels.weights(TIMESTEPS, 5.0)[2] == 1
    torch.testing.assert_close(levels.target(LATENTS, NOISE, TIMESTEPS)[2], -LATENTS[2])


def test_masked_pixels_add_no_loss_and_no_gradient() -> None:
    mask = torch.zeros(3, 1, 5, 6)
    mask[..., :2] = 1
    outputs = LATENTS.clone().requires_grad_()
    found = errors(outputs, NOISE, mask)
    spoilt = torch.where(mask.bool(), NOISE, 1e6)
    assert torch.equal(found, errors(outputs, spoilt, mask))
    torch.testing.assert_close(found, (LATENTS - NOISE)[..., :2].square().mean(dim=(1, 2, 3)))
    found.sum().backward()
    assert outputs.grad is not None
    assert torch.equal(outputs.grad != 0, mask.bool().expand_as(outputs))


def test_a_mask_of_everything_is_no_mask() -> None:
    torch.testing.assert_close(errors(LATENTS, NOISE, torch.ones(3, 1, 5, 6)), errors(LATENTS, NOISE, None))


@pytest.mark.parametrize(
    ("scheduler", "why"),
    [
        (FLOW_SCHEDULER, "training supports epsilon and v-prediction"),
        ({**SD1_SCHEDULER, "rescale_betas_zero_snr": True}, "zero SNR needs v-prediction"),
        ({**SD1_SCHEDULER, "prediction_type": "sample"}, "training supports epsilon and v-prediction"),
    ],
)
def test_models_with_other_objectives_are_refused(scheduler: dict[str, object], why: str) -> None:
    with pytest.raises(UnsupportedOption, match=why):
        NoiseLevels.of(scheduler, CPU)
