"""How much one network call may hold, in rows times picture area; measured per model and machine, or guessed."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from safelight.models.backends.denoiser import Conditions, Denoiser
from safelight.models.networks.load import Model

USUAL_ROWS = {"cpu": 16, "mps": 8, "cuda": 32}
"""Rows at the model's own size, where nothing was measured."""
WORTHWHILE = 1.05
"""Doubling the batch must bring this much more throughput, or it only makes everybody wait longer."""
MAX_ROWS = 128


def native_megapixels(model: Model) -> float:
    defaults = model.description.defaults
    return defaults.width * defaults.height / 1e6


def budget_for(model: Model, *, chosen: float | None, measured: Path) -> float:
    """What the operator chose, else what `measure` found here earlier, else a guess."""
    if chosen is not None:
        return chosen
    guess = USUAL_ROWS[model.placement.device.type] * native_megapixels(model)
    return read_budgets(measured).get(name_of(model), guess)


def measure(model: Model, denoiser: Denoiser, *, report: Callable[[int, float], None]) -> float:
    """The megapixels past which larger batches stop paying; `report` hears rows and seconds a call."""
    rows, best_rows, best_rate = 1, 1, 0.0
    # Two doublings past the best: one slow reading on a busy machine must not end the search.
    while rows <= min(MAX_ROWS, 4 * best_rows):
        try:
            seconds = seconds_per_call(model, denoiser, rows)
        except (MemoryError, RuntimeError):  # out of memory has both faces
            break
        report(rows, seconds)
        if rows / seconds >= best_rate * WORTHWHILE:
            best_rows, best_rate = rows, rows / seconds
        rows *= 2
    return best_rows * native_megapixels(model)


def seconds_per_call(model: Model, denoiser: Denoiser, rows: int, *, repeats: int = 3) -> float:
    """The fastest of a few calls at the model's own size, on made-up inputs; speed does not depend on values."""
    about, device = model.description, model.placement.device
    height, width = about.defaults.height // about.vae_scale, about.defaults.width // about.vae_scale
    conditions = nothing_said(model, rows)
    latents = torch.zeros(rows, about.in_channels, height, width, device=device)
    timesteps = torch.full((rows,), 500.0, device=device)
    fastest = float("inf")
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first also pays for what is set up once
            began = time.perf_counter()
            denoiser(latents, timesteps, conditions)
            if device.type == "cuda":
                torch.cuda.synchronize()
            fastest = min(fastest, time.perf_counter() - began)
    return fastest


def nothing_said(model: Model, rows: int) -> Conditions:
    """Conditions of the right shapes."""
    about, unet = model.description, model.description.unet
    tokens = model.text_encoders[0].tokenizer.max_length
    if about.family.network == "transformer":
        tokens = about.family.t5_tokens + (0 if about.family.t5_alone else tokens)
        width, pooled_width = int(unet["joint_attention_dim"]), int(unet["pooled_projection_dim"])
    else:
        width, whole = int(unet["cross_attention_dim"]), int(unet.get("projection_class_embeddings_input_dim") or 0)
        pooled_width = whole - (5 if about.family.score_conditioned else 6) * int(
            unet.get("addition_time_embed_dim") or 0
        )
    empty = partial(torch.zeros, device=model.placement.device)
    return Conditions(
        context=empty(rows, tokens, width),
        mask=None,
        pooled=empty(rows, pooled_width) if pooled_width else None,
        time_ids=empty(rows, 5 if about.family.score_conditioned else 6) if about.family.size_conditioned else None,
        guidance=empty(rows) + 1 if about.takes_guidance else None,
    )


def remember(measured: Path, model: Model, megapixels: float) -> None:
    measured.parent.mkdir(parents=True, exist_ok=True)
    part = measured.with_suffix(".part")
    part.write_text(json.dumps(read_budgets(measured) | {name_of(model): megapixels}, indent=1))
    part.replace(measured)


def read_budgets(measured: Path) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in json.loads(measured.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def name_of(model: Model) -> str:
    return f"{model.digest[:16]} {model.placement}"
