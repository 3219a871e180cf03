import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.diffusion.checkpoints import (
    CHECKPOINTS,
    COMBINATIONS,
    PLAYGROUND,
    SD1,
    SD2,
    SD3,
    SDXL,
    ZERO_SNR,
    diffusers_scheduler,
    start,
    step_kwargs,
)

from safelight.diffusion.compile import compile_schedule
from safelight.diffusion.noise import draw, seeded
from safelight.diffusion.samplers import SAMPLERS, Sampler
from safelight.diffusion.schedule import HISTORY, Schedule
from safelight.diffusion.schedules import StepSpacing, schedule_for
from safelight.errors import UnsupportedOption

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers on numpy 2

SHAPE = (1, 4, 8, 8)

TOLERANCE = 1e-6
"""Of the largest latent, in float64. What is left is diffusers' own casts to float32 (6e-8), a few in every row of the
schedulers that make them; the worst seen is 7e-7."""


def run_diffusers(sampler: Sampler, config: dict, steps: int, strength: float, dtype: torch.dtype) -> torch.Tensor:
    """The latents after each row of diffusers' own loop, with outputs that owe nothing to the latents."""
    scheduler, generator, network = diffusers_scheduler(sampler, config), seeded(1), seeded(2)
    timesteps = start(scheduler, steps, strength)
    latents = torch.randn(SHAPE, generator=seeded(0)).to(dtype) * float(getattr(scheduler, "init_noise_sigma", 1))
    path = []
    with float32_noise(scheduler):
        for timestep in timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(latents, timestep)
            output = torch.randn(SHAPE, generator=network).to(dtype)
            kwargs = step_kwargs(scheduler, sampler, generator)
            latents = scheduler.step(output, timestep, latents, **kwargs, return_dict=False)[0]
            path.append(latents)
    return torch.stack(path)


@contextmanager
def float32_noise(scheduler: Any) -> Iterator[None]:
    """A float64 latent makes some schedulers draw in float64, and from one seed those are other numbers."""
    module: Any = sys.modules[type(scheduler).__module__]
    with pytest.MonkeyPatch.context() as patch:
        if original := getattr(module, "randn_tensor", None):
            patch.setattr(
                module, "randn_tensor", lambda *a, dtype, **k: original(*a, **k, dtype=torch.float32).to(dtype)
            )
        yield


def run_table(schedule: Schedule) -> torch.Tensor:
    generator, network = seeded(1), seeded(2)
    latents = [torch.randn(SHAPE, generator=seeded(0)).double() * schedule.initial_scale]
    outputs: list[torch.Tensor] = []
    for i in range(len(schedule)):
        outputs.insert(0, torch.randn(SHAPE, generator=network).double())
        noise = draw(generator, SHAPE).double() if schedule.draws[i] else torch.zeros(())
        after = schedule.noise[i] * noise
        for k in range(min(i + 1, HISTORY)):
            after = after + schedule.x[i, k] * latents[k] + schedule.m[i, k] * outputs[k]
        latents.insert(0, after)
    return torch.stack(latents[-2::-1])


def difference(name: str, config: dict, steps: int, strength: float = 1.0) -> float:
    theirs = run_diffusers(SAMPLERS[name], config, steps, strength, torch.float64)
    ours = run_table(schedule_for(name, config, steps=steps, strength=strength))
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


PLAIN = [(name, checkpoint) for name, checkpoint in COMBINATIONS if not SAMPLERS[name].base]
SPACED = [
    (name, checkpoint)
    for name, checkpoint in COMBINATIONS
    if SAMPLERS[name].base and checkpoint in ("zero SNR", "SD 3") and "DPM2" not in name
]
# The constructor of DPM2 lays out a thousand steps (0.3 s), and SDXL is SD 1 but for "leading".
QUICK = [(name, of) for name, of in PLAIN if of != "SDXL" and ("DPM2" not in name or of == "SD 1")]


@pytest.mark.parametrize(("name", "checkpoint"), [*QUICK, *SPACED])
def test_a_table_gives_the_latents_of_diffusers(name: str, checkpoint: str) -> None:
    """Noise included: the same seed gives the same draws in the same rows."""
    assert difference(name, CHECKPOINTS[checkpoint], 12) < TOLERANCE


@pytest.mark.parametrize(("name", "checkpoint"), QUICK)
@pytest.mark.parametrize(("steps", "strength"), [(12, 0.6)])
def test_a_table_starts_at_the_step_of_image_to_image(name: str, checkpoint: str, steps: int, strength: float) -> None:
    assert difference(name, CHECKPOINTS[checkpoint], steps, strength) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "checkpoint"), COMBINATIONS)
@pytest.mark.parametrize(("steps", "strength"), [(50, 1.0), (1, 1.0), (37, 0.83), (20, 0.25), (4, 0.3), (2, 1.0)])
def test_every_combination_at_many_counts(name: str, checkpoint: str, steps: int, strength: float) -> None:
    assert difference(name, CHECKPOINTS[checkpoint], steps, strength) < TOLERANCE


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["Euler", "DPM++ 2M Karras", "DPM++ 2M SDE", "UniPC", "DDIM", "PLMS", "Heun", "Euler a"]),
    st.integers(1, 60),
    st.floats(0.02, 1),
)
def test_any_count_and_strength(name: str, steps: int, strength: float) -> None:
    if int(steps * strength) >= 1:
        assert difference(name, SDXL, steps, strength) < TOLERANCE


@pytest.mark.slow
def test_a_thousand_steps_of_ddpm() -> None:
    # Without the offset of 1, which would ask diffusers for timestep 1000.
    assert difference("DDPM", {**SD1, "steps_offset": 0}, 1000) < TOLERANCE


@pytest.mark.parametrize(("name", "checkpoint"), QUICK)
def test_noise_levels_are_those_of_add_noise(name: str, checkpoint: str) -> None:
    sampler, config = SAMPLERS[name], CHECKPOINTS[checkpoint]
    schedule = schedule_for(name, config, steps=10, strength=0.5)
    scheduler = diffusers_scheduler(sampler, config)
    timesteps = start(scheduler, 10, 0.5)
    image, noise = torch.randn(SHAPE, generator=seeded(3)), torch.randn(SHAPE, generator=seeded(4))
    if hasattr(scheduler, "add_noise"):
        theirs = scheduler.add_noise(image, noise, timesteps[:1])
    else:
        theirs = scheduler.scale_noise(image, timesteps[:1], noise)
    ours = schedule.signal[0] * image + schedule.sigma[0] * noise
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=1e-6)  # diffusers computes it in float32
    assert (schedule.signal[-1], schedule.sigma[-1]) == (1, 0)


@pytest.mark.parametrize(("name", "checkpoint"), QUICK)
def test_input_scale_and_start_are_those_of_the_scheduler(name: str, checkpoint: str) -> None:
    schedule = schedule_for(name, CHECKPOINTS[checkpoint], steps=10)
    scheduler = diffusers_scheduler(SAMPLERS[name], CHECKPOINTS[checkpoint])
    timesteps = start(scheduler, 10)
    np.testing.assert_array_equal(schedule.timesteps, timesteps.double().numpy())
    assert schedule.initial_scale == float(getattr(scheduler, "init_noise_sigma", 1))
    if hasattr(scheduler, "scale_model_input"):
        theirs = float(scheduler.scale_model_input(torch.ones(1), timesteps[0]))
        assert schedule.input_scale[0] == pytest.approx(theirs, rel=1e-6)  # float32


@pytest.mark.parametrize("checkpoint", ["SD 1", "SD 2", "zero SNR", "SD 3", "Playground"])
def test_the_clean_estimate_is_exact_for_a_network_that_knows_the_picture(checkpoint: str) -> None:
    """Every row of every sampler, from x = signal x0 + sigma eps and the prediction its kind of network would make."""
    for name in [name for name, of in PLAIN if of == checkpoint]:
        schedule = schedule_for(name, CHECKPOINTS[checkpoint], steps=10)
        if "DPM2" in name:
            continue  # add_noise of its half-way rows is for the end of the step, its estimate for the middle
        signal, sigma = schedule.signal[:-1], schedule.sigma[:-1]
        x0, eps = 0.7, -1.3
        x, norm = signal * x0 + sigma * eps, np.hypot(signal, sigma)
        match checkpoint:
            case "SD 1":
                m = eps
            case "SD 2" | "zero SNR":
                m = (signal * eps - sigma * x0) / norm
            case "SD 3":
                m = eps - x0
            case _:  # EDM: x0 = c_skip x + c_out m, arXiv:2206.00364 table 1
                m = (x0 - 0.25 / (sigma**2 + 0.25) * x) / (sigma * 0.5 / np.hypot(sigma, 0.5))
        estimate = schedule.denoised_x * x + schedule.denoised_m * m
        # float32 coefficients, at sigma 4096 for zero SNR
        np.testing.assert_allclose(estimate, x0, rtol=1e-3 if checkpoint == "zero SNR" else 1e-5, err_msg=name)


DRAWS = {
    "Euler": [0, 0, 0, 0],
    "Euler a": [1, 1, 1, 1],  # in the last row too, where its share is 0
    "DPM2 a": [0, 1, 0, 1, 0, 1, 0],  # never in the last step, which is first order
    "DPM++ 2M SDE": [1, 1, 1, 1],
    "DPM++ SDE": [1, 1, 1, 1],
    "SA-Solver": [1, 1, 1, 1],
    "DDPM": [1, 1, 1, 1],  # the last timestep is steps_offset = 1, and only 0 is quiet
    "LCM": [1, 1, 1, 0],
    "TCD": [1, 1, 1, 0],
    "PLMS": [0, 0, 0, 0, 0],
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_counted_where_diffusers_draws(name: str) -> None:
    schedule = schedule_for(name, SD1, steps=4)
    assert schedule.draws.tolist() == DRAWS[name]
    assert schedule.step_of[-1] == schedule.steps - 1 == 3


def test_calls_belong_to_steps() -> None:
    assert schedule_for("Heun", SD1, steps=3).step_of.tolist() == [0, 0, 1, 1, 2]
    assert schedule_for("PLMS", SD1, steps=3).step_of.tolist() == [0, 0, 1, 2]
    assert schedule_for("Heun", SD1, steps=10, strength=0.3).steps == 3


@pytest.mark.parametrize("option", ["thresholding", "clip_sample"])
@pytest.mark.parametrize("class_name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_an_option_that_is_not_linear_is_refused_by_name(option: str, class_name: str) -> None:
    config = {**SD1, "_class_name": class_name, option: True, "sample_max_value": 2.0}
    with pytest.raises(UnsupportedOption, match="not linear") as error:
        schedule_for("Default", config, steps=5)
    assert error.value.param == option


def test_thresholding_of_a_multistep_sampler_is_refused_by_name() -> None:
    config = {**SD1, "_class_name": "DPMSolverMultistepScheduler", "thresholding": True}
    with pytest.raises(UnsupportedOption, match=r"^thresholding"):
        schedule_for("Default", config, steps=5)
    schedule_for("DPM++ 2M", config, steps=5)  # the checkpoint's choice of sampler is not the caller's


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({**SD1, "_class_name": "DPMSolverSDEScheduler"}, "correlated"),
        ({**SD1, "_class_name": "NoSuchScheduler"}, "no such scheduler"),
        ({**SD1, "skip_prk_steps": False}, "not linear in the latest"),  # PNDM's Runge-Kutta start looks 9 calls back
        ({**SD1, "_class_name": "EulerDiscreteScheduler", "beta_schedule": "square"}, "square is not implemented"),
        ({**ZERO_SNR, "prediction_type": "epsilon"}, "NaN or infinite values"),  # the noise says nothing of x0 there
        ({**SD3, "use_dynamic_shifting": True}, "image size"),
        ({key: value for key, value in SD1.items() if key != "_class_name"}, "_class_name"),
    ],
)
def test_schedulers_that_cannot_be_tables_are_refused_with_the_reason(config: dict, why: str) -> None:
    with pytest.raises(UnsupportedOption, match=why):
        schedule_for("Default", config, steps=20)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("sampler", ["Default", "Flow Euler", "Flow UniPC", "Flow Heun"])
def test_dynamic_shifting_is_a_shift_by_the_size_of_the_picture(sampler: str, kind: str) -> None:
    """Half-way between the two lengths, mu is half-way between the two shifts; what that does to sigma is a formula."""
    config = {**SD3, "use_dynamic_shifting": True, "base_shift": 1.0, "max_shift": 2.0, "time_shift_type": kind}
    # Evenly from 1, where the class can hear it, so that the unshifted levels are known.
    found = schedule_for(sampler, config, steps=4, spacing=StepSpacing(patches=(256 + 4096) // 2, evenly=True))
    factor = math.exp(1.5) if kind == "exponential" else 1.5
    second = found.sigma[1 if sampler != "Flow Heun" else 2]
    even = {"Flow Heun": 1 - (1 - 1 / 1000) / 3, "Flow UniPC": 0.75}.get(sampler, 0.75)
    assert second == pytest.approx(factor * even / (1 + (factor - 1) * even), rel=2e-3)


def test_a_partly_included_step_is_run_if_the_family_rounds_up() -> None:
    assert schedule_for("Default", SD3, steps=5, strength=0.5).steps == 2
    assert schedule_for("Default", SD3, steps=5, strength=0.5, spacing=StepSpacing(rounds_up=True)).steps == 3


def test_a_checkpoint_of_another_kind_is_refused() -> None:
    with pytest.raises(UnsupportedOption, match="for diffusion models, and this one is of kind flow"):
        schedule_for("Euler", SD3, steps=4)
    with pytest.raises(UnsupportedOption, match="for flow models, and this one is of kind edm"):
        schedule_for("Flow Euler", PLAYGROUND, steps=4)


def test_a_step_count_that_diffusers_rounds_up_to_a_wrong_level_is_refused() -> None:
    with pytest.raises(UnsupportedOption, match="use one step fewer"):
        schedule_for("DDIM", ZERO_SNR, steps=61)
    assert len(schedule_for("Euler", ZERO_SNR, steps=61)) == 62


def test_zero_snr_reaches_samplers_that_do_not_know_it() -> None:
    euler, heun = (schedule_for(name, ZERO_SNR, steps=8) for name in ("Euler", "Heun"))
    assert heun.initial_scale == pytest.approx(euler.initial_scale, rel=1e-4)  # betas are float32 in diffusers
    assert euler.initial_scale > 4000


def test_the_random_number_function_of_diffusers_is_restored() -> None:
    from diffusers.schedulers import scheduling_ddpm
    from diffusers.utils.torch_utils import randn_tensor

    schedule_for("DDPM", SD2, steps=3)
    with pytest.raises(UnsupportedOption):
        schedule_for("Default", {**SD2, "_class_name": "DDPMScheduler", "clip_sample": True}, steps=3)
    assert scheduling_ddpm.randn_tensor is randn_tensor


def test_ipndm_compiles_for_the_checkpoints_that_name_it() -> None:
    assert difference("Default", {"_class_name": "IPNDMScheduler", "num_train_timesteps": 1000}, 12) < TOLERANCE


def test_a_misspelt_option_is_an_error() -> None:
    with pytest.raises(UnsupportedOption, match="solver_ordr"):
        compile_schedule(
            "DPMSolverMultistepScheduler", model=SD1, options={"solver_ordr": 2}, step_options={}, steps=4, start=0
        )
