"""The table of a sampler for a checkpoint: from memory, from disk, or compiled (docs/decisions/0002).

    schedule_for(sampler, model_config, steps=..., strength=...)
      -> recipe     everything the table depends on, as text: diffusers version, class, its options, steps, first step
      -> memory     the last few hundred tables of this process
      -> disk       one small .npz per recipe, if a cache folder is given
      -> compile    step the real diffusers scheduler (compile.py)

diffusers is imported only for the last stage: it takes seconds, and a cached table does not need it.
"""

import hashlib
import json
import math
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from safelight.diffusion.samplers import Sampler, find_sampler
from safelight.diffusion.schedule import Schedule
from safelight.errors import UnsupportedOption

FORMAT = 1
"""Version of the table's format; incremented on changes, so that old cache files are not read."""

MODEL_KEYS = frozenset(
    # How the network was trained, or must be called. Everything else in a checkpoint's scheduler_config.json (its
    # algorithm, solver order, Karras sigmas, clipping, ...) is a choice of sampler, which the caller has replaced.
    """
    num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr prediction_type
    timestep_spacing timestep_type steps_offset set_alpha_to_one original_inference_steps timestep_scaling
    sigma_min sigma_max sigma_data rho shift flow_shift shift_terminal invert_sigmas
    use_dynamic_shifting time_shift_type
    """.split()
)

MAX_SHIFT = 1.15
"""diffusers' default of `max_shift`; those of `base_shift` and the two lengths are in `_mu`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpacing:
    """How diffusers' pipelines of one family space their steps, in addition to the scheduler's configuration."""

    evenly: bool = False
    """Noise levels fall evenly from 1, in place of the scheduler's spacing (Flux)."""
    rounds_up: bool = False
    """A step that `strength` includes only in part is run, not skipped (Stable Diffusion 3, Flux)."""
    patches: int | None = None
    """Number of patches of the image; with dynamic shifting, larger images get more noise (arXiv:2403.03206)."""


def schedule_for(
    sampler: Sampler | str,
    model_config: Mapping[str, Any],
    *,
    steps: int,
    strength: float = 1.0,
    spacing: StepSpacing = StepSpacing(),
    cache: Path | None = None,
) -> Schedule:
    """Return the table of a sampler for a checkpoint whose scheduler_config.json is `model_config`.

    `strength` below 1 skips the first steps, as diffusers' image-to-image pipelines do. The history is empty at that
    start, so each start has its own table. `cache` is a folder for tables. Those of a plugin's own class are not put
    there, since its code may change.
    """
    sampler = find_sampler(sampler) if isinstance(sampler, str) else sampler
    start = _first_step(steps, strength, rounds_up=spacing.rounds_up)
    recipe = _recipe(sampler, model_config, spacing) | {"steps": steps, "start": start}
    own = sampler.diffusers_class if isinstance(sampler.diffusers_class, type) else None
    return _cached(json.dumps(recipe, sort_keys=True, default=np.ndarray.tolist), None if own else cache, own)


def count_steps(
    sampler: Sampler | str,
    model_config: Mapping[str, Any],
    *,
    steps: int,
    strength: float = 1.0,
    spacing: StepSpacing = StepSpacing(),
) -> int:
    """Return the number of steps of `schedule_for` with the same arguments; raises as it does, without compiling."""
    sampler = find_sampler(sampler) if isinstance(sampler, str) else sampler
    _recipe(sampler, model_config, spacing)
    return steps - _first_step(steps, strength, rounds_up=spacing.rounds_up)


def _first_step(steps: int, strength: float, *, rounds_up: bool = False) -> int:
    """Return the number of skipped steps, by the arithmetic and rounding of diffusers' `get_timesteps`."""
    if steps < 1:
        raise UnsupportedOption("steps", f"must be at least 1, not {steps}")
    if not 0 < strength <= 1:
        raise UnsupportedOption("strength", f"must be above 0 and at most 1, not {strength}")
    remaining = steps - int(steps - steps * strength) if rounds_up else min(int(steps * strength), steps)
    if remaining < 1:
        least = math.ceil(1000 / steps) / 1000
        raise UnsupportedOption("strength", f"{strength} of {steps} steps leaves no step; use {least} or more")
    return steps - remaining


def _recipe(sampler: Sampler, model_config: Mapping[str, Any], spacing: StepSpacing) -> dict[str, Any]:
    """Return everything that a table depends on, except steps and start."""
    # A config saved by diffusers lists the keys that have default values; another class may have other defaults.
    unchosen = {"_use_default_values", *model_config.get("_use_default_values", ())}
    config = {key: value for key, value in model_config.items() if key not in unchosen}
    chosen = sampler.diffusers_class
    class_name = chosen.__name__ if isinstance(chosen, type) else chosen or config.get("_class_name")
    if not class_name:
        raise UnsupportedOption(
            f"sampler {sampler.name!r}", "this checkpoint's config has no _class_name; choose a sampler"
        )
    kind = _kind_of(config)
    if sampler.kind not in (kind, "any"):
        raise UnsupportedOption(
            f"sampler {sampler.name!r}", f"is for {sampler.kind} models, and this one is of kind {kind}"
        )
    model = {key: value for key, value in config.items() if key in MODEL_KEYS or not chosen}
    model = {key: value for key, value in model.items() if not key.startswith("_")}
    # DDIM and DDPM clip by default; diffusers' Stable Diffusion pipelines turn it off.
    model.setdefault("clip_sample", False)
    if "shift" in model:
        # The option is `shift` in FlowMatch schedulers, `flow_shift` in multistep ones.
        model.setdefault("flow_shift", model["shift"])
    return {
        "format": FORMAT,
        "diffusers": _diffusers_version(),
        "class": class_name,
        "model": model,
        "options": dict(sampler.options),
        "step_options": dict(sampler.step_options),
        "mu": _mu(config, spacing.patches) if config.get("use_dynamic_shifting") else None,
        "evenly": spacing.evenly,
    }


def _mu(config: Mapping[str, Any], patches: int | None) -> float:
    """Return mu of dynamic shifting: linear in the number of patches, as in diffusers' pipelines."""
    if patches is None:
        raise UnsupportedOption("use_dynamic_shifting", "the schedule depends on the image size, which is not known")
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", MAX_SHIFT)
    slope = (most - least) / (many - few)
    return patches * slope + (least - slope * few)


@lru_cache
def _diffusers_version() -> str:
    return version("diffusers")


def _kind_of(config: Mapping[str, Any]) -> str:
    class_name = config.get("_class_name", "")
    if class_name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        return "flow"
    return "edm" if class_name.startswith("EDM") else "diffusion"


@lru_cache(maxsize=256)
def _cached(recipe: str, cache: Path | None, own_class: type[Any] | None) -> Schedule:
    path = cache / f"{hashlib.sha256(recipe.encode()).hexdigest()}.npz" if cache else None
    if path and (schedule := _read(path)):
        return schedule
    from safelight.diffusion.compile import compile_schedule

    parts = json.loads(recipe)
    schedule = compile_schedule(
        own_class or parts["class"],
        model=parts["model"],
        options=parts["options"],
        step_options=parts["step_options"],
        steps=parts["steps"],
        start=parts["start"],
        mu=parts["mu"],
        evenly=parts["evenly"],
    )
    if path:
        _write(path, schedule)
    return schedule


def _stored() -> list[str]:
    return [column.name for column in fields(Schedule) if column.init]


def _read(path: Path) -> Schedule | None:
    """Return the stored table, or None if there is none or the file is damaged (it is then rewritten)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            columns: dict[str, Any] = {name: file[name] for name in _stored()}
        columns["initial_scale"] = float(columns["initial_scale"])
        columns["steps"] = int(columns["steps"])
        return Schedule(**columns)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


def _write(path: Path, schedule: Schedule) -> None:
    """Write atomically: another process may be reading, or this one may be killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(getattr(schedule, name)) for name in _stored()})
    Path(file.name).replace(path)
