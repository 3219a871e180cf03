"""The rows of one network call: which predictions each job of a batch needs, and with which conditions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from safelight.engine.job import Job
from safelight.models.adapters.effect import RowKind, WantedRow
from safelight.models.backends.denoiser import Conditions, stack
from safelight.models.hooks.hook import EffectRows
from safelight.models.networks.encode import Conditioning

HIGH_SCORE, LOW_SCORE = 6.0, 2.5
"""The aesthetic scores that SDXL's refiner is given with the prompt and with the negative one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkRow:
    """One row of a network call: one prediction for one job."""

    job: int
    """Index of the job in the batch."""
    kind: RowKind
    conditioning: Conditioning
    negative: bool = False
    """Conditioned on the negative prompt."""


def first_rows(batch: Sequence[Job]) -> list[NetworkRow]:
    """The rows of the first call: every prompt first (AND gives a job several), then what guidance compares with, then
    what effects want."""
    jobs = list(enumerate(batch))
    return [
        *(NetworkRow(job=i, kind="cond", conditioning=part) for i, job in jobs for part in positives_of(job)),
        *(
            NetworkRow(job=i, kind="uncond", conditioning=negative_of(job), negative=True)
            for i, job in jobs
            if job.uses_cfg
        ),
        *(
            NetworkRow(job=i, kind="uncond_image", conditioning=negative_of(job), negative=True)
            for i, job in jobs
            if job.uses_image_cfg
        ),
        *(row for i, job in jobs for row in rows_of_effects(i, job)),
    ]


def rows_of_effects(i: int, job: Job) -> Iterator[NetworkRow]:
    """The rows of the first call that the job's effects want."""
    for name, active in job.effects.items():
        for wanted in active.rows():
            if not wanted.second_call:
                yield NetworkRow(job=i, kind=name, conditioning=conditioning_for(job, name, wanted))


def conditioning_for(job: Job, effect: str, wanted: WantedRow) -> Conditioning:
    if wanted.prompt is None:
        return positives_of(job)[0]
    assert job.encoded is not None
    return job.encoded.of_effects[effect][wanted.prompt][job.step]


def conditions_for(batch: Sequence[Job], network_rows: Sequence[NetworkRow]) -> Conditions:
    """The conditions of one call of the batch's network."""
    jobs = [batch[entry.job] for entry in network_rows]
    context, mask, pooled = stack([entry.conditioning for entry in network_rows])
    description = batch[0].model.description
    time_ids = guidance = None
    if description.family.size_conditioned:
        assert pooled is not None
        scored = description.family.score_conditioned
        ids = [
            [h, w, 0, 0, *((LOW_SCORE if entry.negative else HIGH_SCORE,) if scored else (h, w))]
            for (w, h), entry in zip((job.size for job in jobs), network_rows, strict=True)
        ]
        time_ids = torch.tensor(ids, device=context.device, dtype=pooled.dtype)
    if description.takes_guidance:
        guidance = torch.tensor([job.spec.guidance for job in jobs], device=context.device)
    effects = effects_of(jobs, network_rows)
    return Conditions(context=context, mask=mask, pooled=pooled, time_ids=time_ids, guidance=guidance, effects=effects)


def effects_of(jobs: Sequence[Job], network_rows: Sequence[NetworkRow]) -> dict[str, EffectRows]:
    """What each effect applies to each row; effects that act in no row are left out."""
    found: dict[str, EffectRows] = {}
    for name, some in {name: active for job in jobs for name, active in job.now.effects.items()}.items():
        pairs = zip(jobs, network_rows, strict=True)
        rows = [job.effect_row(name, entry.kind, negative=entry.negative) for job, entry in pairs]
        if any(rows):
            found[name] = EffectRows(some.hook, rows)
    return found


def positives_of(job: Job) -> list[Conditioning]:
    """The prompt's conditioning in the coming call, one for each part that AND joins."""
    assert job.encoded is not None
    return [steps[job.step] for steps in job.encoded.positive]


def negative_of(job: Job) -> Conditioning:
    assert job.encoded is not None
    assert job.encoded.negative is not None
    return job.encoded.negative[job.step]
