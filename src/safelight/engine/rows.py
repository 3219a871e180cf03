"""The rows of one network call: which predictions each job of a batch needs, and with which conditions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from safelight.engine.job import Job
from safelight.models.backends.denoiser import Conditions, stack
from safelight.models.hooks.attention_mask import AttentionMask
from safelight.models.networks.encode import Conditioning

HIGH_SCORE, LOW_SCORE = 6.0, 2.5
"""The aesthetic scores that SDXL's refiner is given with the prompt and with the negative one."""

RowKind = Literal["cond", "uncond", "uncond_image", "pag", "sag"]
"""cond: the prompt. uncond: the negative prompt. uncond_image: likewise, without the picture that is edited. pag: the
prompt, with self-attention perturbed. sag: uncond (cond without guidance) of a latent blurred where it attended."""


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
    """The rows of the first call: every prompt first (AND gives a job several), then what guidance compares with."""
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
        *(NetworkRow(job=i, kind="pag", conditioning=positives_of(job)[0]) for i, job in jobs if job.uses_pag),
    ]


def follow_ups(batch: Sequence[Job], network_rows: Sequence[NetworkRow]) -> dict[int, NetworkRow]:
    """The rows of the second call, by the index of the first-call row whose output each one needs."""
    return {
        index: replace(entry, kind="sag")
        for index, entry in enumerate(network_rows)
        if batch[entry.job].uses_sag and entry.kind == ("uncond" if batch[entry.job].uses_cfg else "cond")
    }


def conditions_for(
    batch: Sequence[Job], network_rows: Sequence[NetworkRow], attention_mask: AttentionMask | None = None
) -> Conditions:
    rows = [(batch[entry.job], entry.negative) for entry in network_rows]
    context, mask, pooled = stack([entry.conditioning for entry in network_rows])
    time_ids = guidance = None
    if batch[0].model.description.family.size_conditioned:
        assert pooled is not None
        told_score = batch[0].model.description.family.score_conditioned
        ids = [
            [h, w, 0, 0, *((LOW_SCORE if negative else HIGH_SCORE,) if told_score else (h, w))]
            for (w, h), negative in ((job.size, negative) for job, negative in rows)
        ]
        time_ids = torch.tensor(ids, device=context.device, dtype=pooled.dtype)
    if batch[0].model.description.takes_guidance:
        guidance = torch.tensor([job.spec.guidance for job, _ in rows], device=context.device)
    adapters = controls = pictures = freeu = uses_pag = None
    if any(job.loras for job in batch):
        adapters = [job.adapted for job, _ in rows]
    if any(job.led.controls for job in batch):
        controls = [job.steered(negative=negative) for job, negative in rows]
    if any(job.led.pictures for job in batch):
        pictures = [job.looked_at(negative=negative) for job, negative in rows]
    if any(job.spec.freeu for job in batch):
        freeu = [job.spec.freeu for job, _ in rows]
    if any(entry.kind == "pag" for entry in network_rows):
        uses_pag = [batch[entry.job].spec.pag_layers if entry.kind == "pag" else () for entry in network_rows]
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
        perturbed=uses_pag,
        attention_mask=attention_mask,
    )


def positives_of(job: Job) -> list[Conditioning]:
    """The prompt's conditioning in the coming call, one for each part that AND joins."""
    assert job.encoded is not None
    return [steps[job.step] for steps in job.encoded.positive]


def negative_of(job: Job) -> Conditioning:
    assert job.encoded is not None
    assert job.encoded.negative is not None
    return job.encoded.negative[job.step]
