"""The rows of a network call: what each job of a batch asks, and what the network is told with it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from safelight.engine.job import Job
from safelight.models.backends.denoiser import Conditions, stack
from safelight.models.hooks.salience import Salience
from safelight.models.networks.encode import Conditioning

HIGH_SCORE, LOW_SCORE = 6.0, 2.5
"""How beautiful SDXL's refiner is told that the picture is, and what guidance leads away from: its authors' numbers."""

About = Literal["prompt", "contrast", "blind", "perturbed", "degraded"]
"""contrast: the negative prompt. blind: likewise, without seeing the picture that is edited. perturbed: the prompt,
without a sense of structure. degraded: the contrast, or without one the prompt, with a blur on what it looked at."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ask:
    """One row of a call."""

    job: int
    """Whose it is: a place in the batch."""
    about: About
    told: Conditioning
    negative: bool = False
    """Told what guidance leads away from."""


def asks_of(batch: Sequence[Job]) -> list[Ask]:
    """All that can be asked at once: first about every prompt, of which AND joins several for a job."""
    jobs = list(enumerate(batch))
    return [
        *(Ask(job=i, about="prompt", told=part) for i, job in jobs for part in positives_of(job)),
        *(Ask(job=i, about="contrast", told=negative_of(job), negative=True) for i, job in jobs if job.contrasted),
        *(Ask(job=i, about="blind", told=negative_of(job), negative=True) for i, job in jobs if job.blinded),
        *(Ask(job=i, about="perturbed", told=positives_of(job)[0]) for i, job in jobs if job.perturbed),
    ]


def follow_ups(batch: Sequence[Job], asks: Sequence[Ask]) -> dict[int, Ask]:
    """What is asked once an answer is there, by the place of the ask that it follows from."""
    return {
        place: replace(ask, about="degraded")
        for place, ask in enumerate(asks)
        if batch[ask.job].degraded and ask.about == ("contrast" if batch[ask.job].contrasted else "prompt")
    }


def conditions_for(batch: Sequence[Job], asks: Sequence[Ask], salience: Salience | None = None) -> Conditions:
    rows = [(batch[ask.job], ask.negative) for ask in asks]
    context, mask, pooled = stack([ask.told for ask in asks])
    time_ids = guidance = None
    if batch[0].model.description.family.told_size:
        assert pooled is not None
        told_score = batch[0].model.description.family.told_score
        ids = [
            [h, w, 0, 0, *((LOW_SCORE if negative else HIGH_SCORE,) if told_score else (h, w))]
            for (w, h), negative in ((job.size, negative) for job, negative in rows)
        ]
        time_ids = torch.tensor(ids, device=context.device, dtype=pooled.dtype)
    if batch[0].model.description.takes_guidance:
        guidance = torch.tensor([job.spec.guidance for job, _ in rows], device=context.device)
    adapters = controls = pictures = freeu = perturbed = None
    if any(job.loras for job in batch):
        adapters = [job.adapted for job, _ in rows]
    if any(job.led.controls for job in batch):
        controls = [job.steered(negative=negative) for job, negative in rows]
    if any(job.led.pictures for job in batch):
        pictures = [job.looked_at(negative=negative) for job, negative in rows]
    if any(job.spec.freeu for job in batch):
        freeu = [job.spec.freeu for job, _ in rows]
    if any(ask.about == "perturbed" for ask in asks):
        perturbed = [batch[ask.job].spec.pag_layers if ask.about == "perturbed" else () for ask in asks]
    return Conditions(
        context=context,
        mask=mask,
        pooled=pooled,
        time_ids=time_ids,
        guidance=guidance,
        adapters=adapters,
        controls=controls,
        pictures=pictures,
        freeu=freeu,
        perturbed=perturbed,
        salience=salience,
    )


def positives_of(job: Job) -> list[Conditioning]:
    """What the coming call is told of the job's prompt: of each of its parts, where AND joins several."""
    assert job.told is not None
    return [steps[job.step] for steps in job.told.positive]


def negative_of(job: Job) -> Conditioning:
    assert job.told is not None
    assert job.told.negative is not None
    return job.told.negative[job.step]
