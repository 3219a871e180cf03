"""Test doubles: an engine that is stepped by hand, and networks that fail on demand."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from tests.patience import wait_until
from torch import Tensor

from safelight.engine.engine import Engine
from safelight.engine.job import Job, by_lanczos
from safelight.engine.loader import Loaded
from safelight.engine.runner import Runner
from safelight.engine.scheduler import Scheduler
from safelight.events import Cancelled, Decoded, Event, Failed
from safelight.models.adapters.control_effect import ActiveControl, ActiveControls
from safelight.models.adapters.effect import Active
from safelight.models.adapters.effects import EFFECTS
from safelight.models.adapters.freeu import FreeUEffect
from safelight.models.adapters.ip_effect import ActivePicturePrompt, ActivePicturePrompts
from safelight.models.adapters.lora_effect import ActiveLora, ActiveLoras
from safelight.models.adapters.pag import PagEffect
from safelight.models.adapters.regions import RegionsEffect
from safelight.models.adapters.sag import SagEffect
from safelight.models.backends.denoiser import Conditions, Denoiser
from safelight.models.backends.eager import eager_denoiser
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.networks.load import Model
from safelight.spec import Denoised, Draft
from safelight.spec.complete import complete

E = TypeVar("E", bound=Event)
_numbers = count()


@dataclass(frozen=True)
class Steering:
    """The controls and picture prompts of one job."""

    controls: tuple[ActiveControl, ...] = ()
    pictures: tuple[ActivePicturePrompt, ...] = ()


def effects_for(
    spec: Denoised,
    pictures: Mapping[str, Image.Image] | None = None,
    *,
    loras: tuple[ActiveLora, ...] = (),
    led: Steering | None = None,
) -> dict[str, Active]:
    """Load them as a loader would."""
    given: dict[str, Active] = {
        "loras": ActiveLoras(loras),
        "controls": ActiveControls(led.controls if led else ()),
        "picture_prompts": ActivePicturePrompts(led.pictures if led else ()),
        "regions": RegionsEffect().load(spec, None, pictures or {}),
        "freeu": FreeUEffect(),
        "pag": PagEffect(),
        "sag": SagEffect(),
    }
    if led is None or not led.controls:
        del given["controls"]
    if led is None or not led.pictures:
        del given["picture_prompts"]
    if not loras:
        del given["loras"]
    return {name: active for name, active in given.items() if EFFECTS[name](Catalogue(Path())).used(spec)}


class SteppedEngine:
    """An engine without its thread: the test calls `step`, and all events are recorded."""

    def __init__(
        self, denoiser_for: Callable[[Model], Denoiser] = eager_denoiser, *, budget_megapixels: float = 1e9
    ) -> None:
        self.events: list[Event] = []
        self.jobs: dict[str, Job] = {}
        self.engine = Engine(Scheduler(lambda _model: budget_megapixels), Runner(denoiser_for), emit=self.events.append)

    def add(
        self,
        spec: Denoised,
        model: Model,
        pictures: Mapping[str, Image.Image] | None = None,
        *,
        loras: tuple[ActiveLora, ...] = (),
        led: "Steering | None" = None,
        **job: Any,
    ) -> Job:
        effects = effects_for(spec, pictures, loras=loras, led=led)
        name = f"job {next(_numbers)}"
        added = Job(id=name, spec=spec, model=model, pictures=pictures or {}, effects=effects, **job)
        self.jobs[added.id] = added
        self.engine.add(added)
        return added

    def finish(self) -> None:
        """Step until there is nothing to do, then wait for the decoder."""
        while self.engine.step():
            pass
        wait_until(lambda: not any(job.state == "decoding" for job in self.engine.live.values()))

    def events_of(self, job: Job, kind: type[E]) -> list[E]:
        return [event for event in self.events if event.job_id == job.id and isinstance(event, kind)]

    def last(self, job: Job) -> Event:
        return [event for event in self.events if event.job_id == job.id][-1]

    def image(self, job: Job) -> Image.Image:
        last = self.last(job)
        assert isinstance(last, Decoded), last
        return last.image

    def ended(self, job: Job) -> bool:
        return isinstance(self.last(job), Decoded | Failed | Cancelled)

    def __enter__(self) -> "SteppedEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()


def draw(spec: Denoised, model: Model, pictures: Mapping[str, Image.Image] | None = None) -> Image.Image:
    """Draw one picture, alone in an engine of its own."""
    with SteppedEngine() as job_service:
        job = job_service.add(spec, model, pictures)
        job_service.finish()
        return job_service.image(job)


def spec_for(model: Model, **wishes: Any) -> Denoised:
    """A complete spec with few steps; `wishes` are fields of a draft."""
    wishes = {"prompt": "a photo of the red apple", "seed": 1, "steps": 3, "sampler": "Euler"} | wishes
    about = model.description
    return complete(Draft(**wishes), about.defaults, model_digest=model.digest, reads=about.reads)


def out_of_memory_above(rows: int, error: type[Exception] = torch.OutOfMemoryError) -> Callable[[Model], Denoiser]:
    """A denoiser that runs out of memory above this many rows."""

    def denoiser_for(model: Model) -> Denoiser:
        denoise = eager_denoiser(model)

        def bounded(latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
            if len(latents) > rows:
                raise error(f"{len(latents)} rows")
            return denoise(latents, timesteps, conditions)

        return bounded

    return denoiser_for


Fault = Callable[[Tensor], Tensor]
"""Changes a network's output for one picture."""


def faulty(fault: Fault, *, prompt: Tensor) -> Callable[[Model], Denoiser]:
    """A denoiser that applies `fault` to every row with this prompt."""

    def denoiser_for(model: Model) -> Denoiser:
        denoise = eager_denoiser(model)

        def treated(latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
            outputs = denoise(latents, timesteps, conditions)
            told = [torch.equal(row[: len(prompt)], prompt) for row in conditions.context]
            return torch.stack([fault(output) if bad else output for output, bad in zip(outputs, told, strict=True)])

        return treated

    return denoiser_for


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures in dB; infinite if they are equal."""
    assert (one.size, one.mode) == (other.size, other.mode)
    difference = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    mean = float(np.square(difference).mean())
    return float("inf") if mean == 0 else 10 * math.log10(255**2 / mean)


def with_scheduler(model: Model, scheduler: Mapping[str, Any]) -> Model:
    return replace(model, description=replace(model.description, scheduler=scheduler))


class ModelLoader:
    """A loader that has models in memory, and loads nothing else."""

    def __init__(self, model_for: Callable[[Denoised], Model]) -> None:
        self.model_for = model_for

    async def load(self, spec: Denoised, pictures: Mapping[str, Image.Image]) -> Loaded:
        del pictures
        model = await asyncio.to_thread(self.model_for, spec)
        return Loaded(model=model, effects=effects_for(spec))

    def enlarge(self, image: Image.Image, scale: float, upscaler: str) -> Image.Image:
        return by_lanczos(image, scale, upscaler)
