"""One output for each job, of all that the network predicted for it: effects and guidance applied."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from safelight.diffusion.advance import Rows, denoised
from safelight.diffusion.guidance import compose, guide, guide_image, rescale
from safelight.diffusion.shapes import Latent, Latents
from safelight.engine.job import Job
from safelight.engine.rows import NetworkRow
from safelight.models.adapters.effect import Active, Prediction
from safelight.models.backends.denoiser import Conditions
from safelight.spec import Edit


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """What the network predicted for a batch, so far."""

    batch: Sequence[Job]
    rows: Rows
    network_rows: Sequence[NetworkRow]
    outputs: Latents
    """One for each network row."""
    conditions: Conditions
    """Of the first call."""

    @cached_property
    def by_job(self) -> list[dict[str, list[Latent]]]:
        """The outputs of each job, by the kind of their rows."""
        found: list[dict[str, list[Latent]]] = [{} for _ in self.batch]
        for entry, output in zip(self.network_rows, self.outputs, strict=True):
            found[entry.job].setdefault(entry.kind, []).append(output)
        return found

    @cached_property
    def cond(self) -> list[Latent]:
        """For each job's prompt, composed where AND joins several; a single one keeps its very bits."""
        return [self.composed(i, job) for i, job in enumerate(self.batch)]

    def composed(self, i: int, job: Job) -> Latent:
        """Of the job's prompts that AND joins, (c, h, w)."""
        parts, uncond = self.by_job[i]["cond"], self.uncond(i)
        if len(parts) == 1:
            return parts[0]
        assert job.encoded is not None
        assert uncond is not None
        return compose(torch.stack(parts), uncond, torch.tensor(job.encoded.weights, device=uncond.device))

    def uncond(self, i: int) -> Latent | None:
        """For the negative prompt of the batch's job `i`, (c, h, w); None without guidance."""
        return self.by_job[i].get("uncond", [None])[0]

    def of_effect(self, i: int, name: str) -> Prediction:
        job, trajectory = self.batch[i], self.batch[i].now
        latent, level = trajectory.latents[0], self.rows.of([i])
        effect = self.conditions.effects.get(name)
        pairs = zip(self.network_rows, effect.rows if effect else (), strict=False)  # a second call's rows come last
        return Prediction(
            spec=job.spec,
            latent=latent,
            cond=self.cond[i],
            uncond=self.uncond(i),
            own=self.by_job[i].get(name, []),
            rows=[row for entry, row in pairs if entry.job == i and row is not None],
            signal=float(trajectory.schedule.signal[trajectory.row]),
            clean=lambda output: denoised(latent[None], output[None], level)[0],
            join=lambda tiles: joined(job, tiles),
        )


def wanting_rows(batch: Sequence[Job]) -> Iterator[tuple[int, str, Active]]:
    """The effects that asked for rows: index of the job, name, effect."""
    for i, job in enumerate(batch):
        for name, active in job.now.effects.items():
            if active.rows():
                yield i, name, active


def joined(job: Job, tiles: Sequence[Tensor]) -> Tensor:
    """(1, h, w) of maps (1, y, x), one for each tile; where tiles overlap and disagree, by half."""
    if job.tiling is None:
        return tiles[0]
    return job.tiling.join(torch.stack(list(tiles)), *job.now.latents[0].shape[-2:])[0]


def with_guidance(predicted: Predicted) -> Latents:
    """One output for each job: first effects on the prompt's prediction, then guidance, then effects on the result."""
    batch = predicted.batch
    effects = [(i, active, predicted.of_effect(i, name)) for i, name, active in wanting_rows(batch)]
    conds = list(predicted.cond)
    for i, active, prediction in effects:
        conds[i] = active.compose(conds[i], prediction)
    cond = torch.stack(conds)

    guided = [i for i, job in enumerate(batch) if job.guided]
    specs = [batch[i].spec for i in guided]
    result = cond.clone()
    if guided:
        uncond = torch.stack([output for i in guided if (output := predicted.uncond(i)) is not None])
        mixed = guide(cond[guided], uncond, torch.tensor([spec.guidance for spec in specs], device=cond.device))
        blind = [predicted.by_job[i].get("uncond_image") for i in guided]
        if any(blind):
            scales = [spec.image_guidance if isinstance(spec, Edit) else 1.0 for spec in specs]
            without = torch.stack([own[0] if own else uncond[place] for place, own in enumerate(blind)])
            mixed = guide_image(mixed, uncond, without, torch.tensor(scales, device=cond.device))
        result[guided] = mixed
    for i, active, prediction in effects:
        result[i] = active.guide(result[i], prediction)
    if any(spec.guidance_rescale for spec in specs):
        phi = torch.tensor([spec.guidance_rescale for spec in specs], device=cond.device)
        mixed = result[guided]
        # where(), because a row without rescaling must keep its very bits.
        result[guided] = torch.where(phi.view(-1, 1, 1, 1) > 0, rescale(mixed, cond[guided], phi), mixed)
    return result
