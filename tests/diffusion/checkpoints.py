"""scheduler_config.json of the checkpoints people have, and diffusers' own loop to compare with."""

import inspect
from typing import Any

import diffusers.schedulers
import torch

from safelight.diffusion.samplers import SAMPLERS, Sampler

SD1 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
SD2 = {**SD1, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
ZERO_SNR = {**SD2, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SDXL = {
    **SD1,
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}
SD3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "rho": 7.0,
    "solver_order": 2,
}
CHECKPOINTS = {"SD 1": SD1, "SD 2": SD2, "zero SNR": ZERO_SNR, "SDXL": SDXL, "SD 3": SD3, "Playground": PLAYGROUND}
KINDS = {"SD 3": "flow", "Playground": "edm"}


def fits(sampler: Sampler, checkpoint: str) -> bool:
    return sampler.kind in (KINDS.get(checkpoint, "diffusion"), "any")


COMBINATIONS = [
    (name, checkpoint) for checkpoint in CHECKPOINTS for name in SAMPLERS if fits(SAMPLERS[name], checkpoint)
]


def diffusers_scheduler(sampler: Sampler, config: dict[str, Any]) -> Any:
    """As a diffusers user would make it, and warnings about keys that the class does not know left out."""
    cls = getattr(diffusers.schedulers, sampler.diffusers_class or config["_class_name"])
    accepted = inspect.signature(cls.__init__).parameters
    known = {key: value for key, value in config.items() if key in accepted}
    if "shift" in config and "flow_shift" in accepted:
        known["flow_shift"] = config["shift"]
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in accepted:
        known["trained_betas"] = zero_snr_betas(config)
    if "clip_sample" in accepted:
        known["clip_sample"] = False
    return cls.from_config(known, **sampler.options)


def zero_snr_betas(config: dict[str, Any]) -> list[float]:
    euler = diffusers.schedulers.EulerDiscreteScheduler(
        **{key: value for key, value in config.items() if key.startswith("beta")}, rescale_betas_zero_snr=True
    )
    alphas = torch.cat([torch.ones(1), euler.alphas_cumprod]).double()
    return (1 - alphas[1:] / alphas[:-1]).tolist()


def start(scheduler: Any, steps: int, strength: float = 1.0) -> Any:
    """The first lines of a pipeline: its timesteps; `get_timesteps` of StableDiffusionImg2ImgPipeline."""
    scheduler.set_timesteps(steps)
    t_start = max(steps - min(int(steps * strength), steps), 0)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(t_start * scheduler.order)
    return scheduler.timesteps[t_start * scheduler.order :]


def step_kwargs(scheduler: Any, sampler: Sampler, generator: torch.Generator | None) -> dict[str, Any]:
    """`prepare_extra_step_kwargs` of the pipelines."""
    accepted = inspect.signature(scheduler.step).parameters
    known = {"eta": sampler.step_options.get("eta", 0.0), "generator": generator}
    return {key: value for key, value in known.items() if key in accepted}
