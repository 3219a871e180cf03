"""Compile a `Schedule` by stepping the real diffusers scheduler; no sampler is reimplemented here.

A scheduler's step is linear in the latent, the network's outputs and the noise. So it is run once with a batch of
unit impulses, one for the first latent, one for each network output and one for each noise tensor: each batch entry of
row i's result is the response to one impulse. The row's coefficients are fitted to express it by the last few latents
and outputs (`_fit`).

Impulses are too small for clamping, so further batch entries (`PROBES`) have large random latents, outputs and noise
in the same run; if the coefficients do not predict their results, the scheduler is not linear and is refused.
"""

import importlib
import inspect
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from safelight.diffusion.schedule import HISTORY, Schedule
from safelight.errors import SafelightError, UnsupportedOption

EXACT = 1e-12
"""Relative error allowed in a row if the scheduler computes in the latent's float64: the largest seen is 1e-14."""

CAST = 1e-6
"""And if it sometimes casts to float32 (6e-8): the largest seen is 2e-7; a clamp gives 1e-3 or more."""

PROBES = 16
PROBE_STD = 10.0
"""Standard deviation of the probes; clipping happens at about 1."""

NOT_LINEAR = ("thresholding", "clip_sample")
"""Options that make the clean estimate non-linear; they are meant for pixel-space models."""

CORRELATED_NOISE = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""Their noise is a Brownian path through the sigmas, correlated from step to step."""

Vector = npt.NDArray[np.float64]

_trace_lock = threading.Lock()


def compile_schedule(
    scheduler: str | type[Any],
    *,
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    step_options: Mapping[str, Any],
    steps: int,
    start: int,
    mu: float | None = None,
    evenly: bool = False,
) -> Schedule:
    """Return the table of a diffusers scheduler from step `start` of `steps`; unknown keys in `model` are ignored.

    `scheduler` is the name of one of diffusers' classes, or a class of the same shape.
    `mu` is the amount of dynamic shifting; with `evenly`, noise levels fall evenly from 1 before they are shifted.
    """
    try:
        # Hide deprecation warnings that diffusers causes in numpy.
        with _trace_lock, warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
            trace = partial(_trace, steps=steps, start=start, step_options=step_options, mu=mu, evenly=evenly)
            try:
                return trace(_open(scheduler, model, options, mu), tolerance=EXACT)
            except UnsupportedOption:
                return trace(_open(scheduler, model, options, mu), tolerance=CAST)
    except SafelightError:
        raise
    except Exception as error:
        # diffusers raises a dozen kinds of exception; all mean that this configuration cannot run.
        class_name = scheduler if isinstance(scheduler, str) else scheduler.__name__
        raise UnsupportedOption(class_name, f"diffusers cannot run it with these options: {error}") from error


def _open(scheduler: str | type[Any], model: Mapping[str, Any], options: Mapping[str, Any], mu: float | None) -> Any:
    scheduler_class = _named(scheduler) if isinstance(scheduler, str) else scheduler
    accepted = set(inspect.signature(scheduler_class.__init__).parameters)
    if model.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in accepted:
        # diffusers would ignore the key and sample a noise range that the network was not trained on.
        model = {**model, "trained_betas": _zero_snr_betas(model)}
    if mu is not None and "use_dynamic_shifting" not in accepted:
        # Schedulers with dynamic shifting shift by mu.
        model = {**model, "shift": mu if model.get("time_shift_type") == "linear" else math.exp(mu)}
    return scheduler_class(**{key: value for key, value in model.items() if key in accepted} | dict(options))


def _named(class_name: str) -> Any:
    """Return diffusers' class of that name, which may come from a checkpoint: no name leads anywhere else."""
    if class_name in CORRELATED_NOISE:
        raise UnsupportedOption(class_name, "its noise is correlated from step to step, which no table can express")
    scheduler_class = getattr(importlib.import_module("diffusers.schedulers"), class_name, None)
    if scheduler_class is None:
        raise UnsupportedOption(class_name, "this version of diffusers has no such scheduler")
    return scheduler_class


def _zero_snr_betas(model: Mapping[str, Any]) -> list[float]:
    """Return betas with (nearly) zero terminal SNR, as diffusers' schedulers rescale them (arXiv:2305.08891)."""
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    accepted = set(inspect.signature(EulerDiscreteScheduler.__init__).parameters)
    euler = EulerDiscreteScheduler(**{key: value for key, value in model.items() if key in accepted})
    alphas = [1.0, *euler.alphas_cumprod.tolist()]
    return [1 - after / before for before, after in pairwise(alphas)]


def _trace(
    scheduler: Any,
    *,
    steps: int,
    start: int,
    step_options: Mapping[str, Any],
    mu: float | None,
    evenly: bool,
    tolerance: float,
) -> Schedule:
    _set_timesteps(scheduler, steps, mu=mu, evenly=evenly)
    timesteps = scheduler.timesteps[start * scheduler.order :]
    if not hasattr(scheduler, "sigmas") and (timesteps < 0).any():
        # "trailing" spacing rounds some counts (61, 103, ...) to one more step, which reads the level at index -1.
        raise UnsupportedOption(
            "steps", f"diffusers gives this sampler a timestep of -1 for {steps} steps; use one step fewer"
        )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start * scheduler.order)
    if "eta" in inspect.signature(scheduler.step).parameters:
        step_options = {"eta": 0.0, **step_options}  # as the pipelines pass

    n = len(timesteps)
    inputs = 1 + 2 * n  # entry 0 is the first latent, 1 + i the output of row i, 1 + n + i its noise
    values = np.zeros((inputs, inputs + PROBES))
    values[:, :inputs] = np.eye(inputs)
    # In float32, so that schedulers that cast their noise do not change it.
    values[:, inputs:] = np.random.default_rng(0).standard_normal((inputs, PROBES), dtype=np.float32) * PROBE_STD

    def entry(index: int) -> torch.Tensor:
        return torch.from_numpy(values[index].copy()).view(-1, 1, 1, 1)

    input_scale, noise, denoised_x, denoised_m = np.zeros((4, n))
    x, m, levels, draws = np.zeros((n, HISTORY)), np.zeros((n, HISTORY)), np.zeros((n + 1, 2)), np.zeros(n, np.int64)
    levels[n] = 1, 0
    row, latent, past = 0, entry(0), list[Vector]()

    def draw(shape: object, generator: object = None, dtype: torch.dtype | None = None, **_: object) -> torch.Tensor:
        draws[row] += 1
        return entry(1 + n + row).to(dtype or torch.float32)

    with _noise_from(draw, scheduler):
        for row, timestep in enumerate(timesteps):
            input_scale[row] = _input_scale(scheduler, timestep)
            levels[row] = _level(scheduler, timestep, start + row)
            output = entry(1 + row)
            stepped = scheduler.step(output, timestep, latent, **step_options)
            clean = _flat(_clean(scheduler, stepped, output, latent, levels[row]))
            past = [_flat(latent), *past][:HISTORY]
            latent = stepped.prev_sample.double()
            after = _flat(latent)
            if not np.isfinite([after, clean]).all():
                raise _refusal(scheduler, f"gives NaN or infinite values in row {row} (timestep {float(timestep):g})")

            outputs = values[1 + row - np.arange(len(past))]
            used = _fit(after, past, outputs, values[1 + n + row], inputs=inputs, tolerance=tolerance)
            if used is None:
                raise _refusal(
                    scheduler,
                    f"cannot become a table: row {row} is not linear in the latest {HISTORY} latents and outputs",
                )
            assert draws[row] <= 1, "two noise tensors in one row cannot be told apart"
            x[row], m[row], noise[row] = used

            # The newest output is not in the latent yet, so its entry separates the two coefficients.
            denoised_m[row] = clean[1 + row]
            denoised_x[row] = clean[:inputs] @ past[0][:inputs] / (past[0][:inputs] @ past[0][:inputs])

    return Schedule(
        timesteps=timesteps.double().numpy(),
        input_scale=input_scale,
        x=x,
        m=m,
        noise=noise,
        draws=draws,
        denoised_x=denoised_x,
        denoised_m=denoised_m,
        signal=levels[:, 0],
        sigma=levels[:, 1],
        initial_scale=float(getattr(scheduler, "init_noise_sigma", 1.0)),
        step_of=_step_of(n, scheduler.order, steps - start),
        steps=steps - start,
    )


def _set_timesteps(scheduler: Any, steps: int, *, mu: float | None, evenly: bool) -> None:
    """Call `set_timesteps` with the arguments of the pipelines that the class accepts."""
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    arguments: dict[str, Any] = {}
    if mu is not None and "mu" in accepted:
        arguments["mu"] = mu
    if evenly and "sigmas" in accepted and not scheduler.config.get("use_flow_sigmas"):
        arguments["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(steps, **arguments)


def _fit(
    after: Vector, past: list[Vector], outputs: Vector, noise: Vector, *, inputs: int, tolerance: float
) -> tuple[Vector, Vector, float] | None:
    """Return (X, M, S) for the shortest history that `after` is a combination of, or None if none up to HISTORY is.

    X must explain all entries but those of the newest outputs and the noise: a least squares with at most HISTORY
    unknowns. The remainder in those entries is M and S.
    """
    scale = np.abs(after[:inputs]).max()
    for depth in range(1, len(past) + 1):
        for latents in sorted({1, depth}):  # most rows use older outputs only
            window = np.stack([*past[:latents]])
            known = [*np.nonzero(outputs[:depth, :inputs])[1], *np.nonzero(noise[:inputs])[0]]
            unexplained, basis = after[:inputs].copy(), window[:, :inputs].copy()
            unexplained[known] = basis[:, known] = 0
            # Normalised: with zero terminal SNR, sigma and the latents fall from 4096. Latents of neighbouring steps
            # are nearly equal, and differences below the tolerance are rounding (rcond).
            norm = np.linalg.norm(basis, axis=1)
            x = np.linalg.lstsq(basis.T / norm, unexplained, rcond=tolerance)[0] / norm
            if np.abs(unexplained - x @ basis).max() > tolerance * scale:
                continue
            rest = after - x @ window
            m, s = rest[known[:-1]], rest[known[-1]]
            residual = rest - m @ outputs[:depth] - s * noise
            if np.abs(residual).max() <= tolerance * np.abs(after).max():
                return _padded(x), _padded(m), s
    return None


def _padded(coefficients: Vector) -> Vector:
    return np.pad(coefficients, (0, HISTORY - len(coefficients)))


def _flat(tensor: torch.Tensor) -> Vector:
    return tensor.double().flatten().numpy()


def _input_scale(scheduler: Any, timestep: torch.Tensor) -> float:
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep))


def _level(scheduler: Any, timestep: torch.Tensor, index: int) -> tuple[float, float]:
    """Return (signal, sigma) of this row's noise level, from `add_noise` of a one without noise and of noise alone."""
    clean, noise = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
    if hasattr(scheduler, "add_noise"):
        signal, sigma = scheduler.add_noise(clean, noise, timestep.repeat(2)).flatten().tolist()
    elif hasattr(scheduler, "scale_noise"):  # its name in flow matching
        signal, sigma = scheduler.scale_noise(clean, timestep.repeat(2), noise).flatten().tolist()
    else:  # IPNDM has no such method; its levels are these
        signal, sigma = scheduler.alphas[index].item(), scheduler.betas[index].item()
    return signal, sigma


def _clean(
    scheduler: Any, stepped: Any, output: torch.Tensor, latent: torch.Tensor, level: npt.NDArray[np.float64]
) -> torch.Tensor:
    """Return the clean estimate: the scheduler's own if it has one, else computed from the prediction type."""
    if getattr(stepped, "pred_original_sample", None) is not None:
        return stepped.pred_original_sample
    signal, sigma = level
    if hasattr(scheduler, "precondition_outputs"):
        return scheduler.precondition_outputs(latent, output, sigma)
    prediction = scheduler.config.get("prediction_type")
    if prediction is None:  # flow matching and IPNDM have a single, unnamed prediction type
        prediction = "flow_prediction" if hasattr(scheduler, "scale_noise") else "v_prediction"
    norm = float(np.hypot(signal, sigma))
    match prediction:
        case "epsilon":
            return (latent - sigma * output) / signal
        case "v_prediction":  # arXiv:2202.00512, for a latent of variance norm^2
            return (signal / norm**2) * latent - (sigma / norm) * output
        case "sample":
            return output
        case "flow_prediction":
            return latent - sigma * output
        case _:
            raise UnsupportedOption("prediction_type", f"{prediction!r} is unknown")


def _step_of(rows: int, calls_per_step: int, steps: int) -> npt.NDArray[np.int64]:
    """Return the step of each row: PLMS makes its extra calls in the first step, others evenly."""
    row = np.arange(rows)
    return row // calls_per_step if calls_per_step > 1 else np.maximum(0, row - (rows - steps))


def _refusal(scheduler: Any, why: str) -> UnsupportedOption:
    """Return the error; it names the non-linear option, if one is on."""
    for option in NOT_LINEAR:
        if scheduler.config.get(option):
            return UnsupportedOption(option, "is not linear in the latent, so no table can hold it; set it to false")
    return UnsupportedOption(type(scheduler).__name__, why)


@contextmanager
def _noise_from(draw: Callable[..., torch.Tensor], scheduler: Any) -> Iterator[None]:
    """Make the scheduler take its noise from `draw`, in this thread only."""
    found: list[Any] = [sys.modules.get(kind.__module__) for kind in type(scheduler).__mro__]
    modules = {module: module.randn_tensor for module in found if hasattr(module, "randn_tensor")}
    thread = threading.get_ident()

    def drawn_by(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        return (draw if threading.get_ident() == thread else original)(*args, **kwargs)

    for module, original in modules.items():
        module.randn_tensor = partial(drawn_by, original)
    try:
        yield
    finally:
        for module, original in modules.items():
            module.randn_tensor = original
