"""One network call for a batch of unlike jobs, and one table update after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from safelight.diffusion.advance import Rows, advance, denoised
from safelight.diffusion.guidance import compose, degrade, guide, guide_away, guide_image, rescale
from safelight.diffusion.noise import draw
from safelight.diffusion.shapes import Latent, Latents, Masks
from safelight.engine.job import Job, Trajectory
from safelight.engine.rows import NetworkRow, conditions_for, first_rows
from safelight.models.adapters.effect import RowKind
from safelight.models.adapters.sag import AttentionMask
from safelight.models.backends.denoiser import Conditions, Denoiser
from safelight.models.backends.tiled import tiled
from safelight.models.networks.load import Model
from safelight.spec import Edit

MAX_TILES = 128
"""Most tiles in one network call."""


class Runner:
    """Keeps nothing between calls; a model's denoiser stays with the model."""

    def __init__(self, denoiser_for: Callable[[Model], Denoiser]) -> None:
        self.denoiser_for = denoiser_for

    def denoise(self, batch: Sequence[Job], rows: Rows, *, budget_megapixels: float = math.inf) -> Latents:
        """What the network predicts for each job, guidance applied; (b, c, h, w) float32.

        A canvas drawn in tiles may have more of them than the budget allows at once: it is then several calls. Rows
        that need an output of the first call share a second one.
        """
        denoise = self.denoiser_over(batch[0], budget_megapixels)
        latents = torch.stack([job.now.latents[0] for job in batch])
        network_rows = first_rows(batch)
        conditions = conditions_for(batch, network_rows)
        outputs = answers(denoise, batch, rows, network_rows, latents, conditions)
        if "sag" in conditions.effects:
            by_index = {i: mask for i, mask in enumerate(conditions.effects["sag"].rows) if mask is not None}
            again = [replace(network_rows[i], kind="sag") for i in by_index]
            masks = [mask_of(batch[entry.job], mask) for entry, mask in zip(again, by_index.values(), strict=True)]
            latents = degraded(batch, rows, again, latents, outputs[[*by_index]], torch.stack(masks))
            outputs = torch.cat([outputs, answers(denoise, batch, rows, again, latents, conditions_for(batch, again))])
            network_rows += again
        return with_guidance(batch, network_rows, outputs)

    def advance(self, batch: Sequence[Job], rows: Rows, outputs: Latents) -> None:
        """Move every job one row on, or none of them."""
        trajectories = [job.now for job in batch]
        histories = [
            [output, *trajectory.outputs[:-1]] for trajectory, output in zip(trajectories, outputs, strict=True)
        ]
        past_latents = stacked([trajectory.latents[: rows.depth] for trajectory in trajectories])
        past_outputs = stacked([history[: rows.depth] for history in histories])
        moved = advance(past_latents, past_outputs, rows, self.noise(batch))
        moved = [blended(trajectory, latent) for trajectory, latent in zip(trajectories, moved, strict=True)]
        for trajectory, history, latent in zip(trajectories, histories, moved, strict=True):
            trajectory.outputs = history
            trajectory.latents = [latent, *trajectory.latents[:-1]]
            trajectory.fresh_noise = None
            trajectory.row += 1

    def estimates(self, batch: Sequence[Job], rows: Rows, outputs: Latents) -> Latents:
        """The clean picture each job is heading for, as latents; call before `advance`."""
        return denoised(torch.stack([job.now.latents[0] for job in batch]), outputs, rows)

    def denoiser_over(self, job: Job, budget_megapixels: float) -> Denoiser:
        """The model's denoiser, or one that draws the canvas in tiles."""
        denoise, tiling = self.denoiser(job.model), job.tiling
        if tiling is None:
            return denoise
        most = budget_megapixels // (job.megapixels / job.rows / job.num_tiles)
        scale = job.model.description.vae_scale
        return tiled(denoise, tiling, most_rows=int(max(1, min(most, MAX_TILES))), scale=scale)

    def denoiser(self, model: Model) -> Denoiser:
        if self not in model.cache:
            model.cache[self] = self.denoiser_for(model)
        return model.cache[self]

    def noise(self, batch: Sequence[Job]) -> Latents | None:
        """Fresh noise for rows whose sampler adds noise, zeros for the others."""
        if not any(job.now.schedule.draws[job.now.row] for job in batch):
            return None
        for job in batch:
            trajectory = job.now
            if trajectory.schedule.draws[trajectory.row] and trajectory.fresh_noise is None:
                assert job.generator is not None
                shape, device = trajectory.latents[0].shape, trajectory.latents[0].device
                trajectory.fresh_noise = draw(job.generator, tuple(shape)).to(device)
        none = torch.zeros_like(batch[0].now.latents[0])
        return torch.stack([none if job.now.fresh_noise is None else job.now.fresh_noise for job in batch])


def stacked(histories: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """(b, k, c, h, w) from b lists of k."""
    flat = torch.stack([entry for history in histories for entry in history])
    return flat.view(len(histories), -1, *flat.shape[1:])


def answers(
    denoise: Denoiser,
    batch: Sequence[Job],
    rows: Rows,
    network_rows: Sequence[NetworkRow],
    latents: Latents,
    conditions: Conditions,
) -> Latents:
    """One network call: the rows' predictions, (n, c, h, w)."""
    jobs, channels = [entry.job for entry in network_rows], latents.shape[1]
    inputs = latents * rows.input_scale.view(-1, 1, 1, 1)
    extra = [job.now.extra_channels for job in batch if job.now.extra_channels is not None]
    if extra:
        inputs = torch.cat([inputs, torch.stack(extra)], dim=1)
    inputs = inputs[jobs]
    inputs[[place for place, entry in enumerate(network_rows) if entry.kind == "uncond_image"], channels:] = 0
    return denoise(inputs, rows.timesteps[jobs], conditions)


def mask_of(job: Job, mask: AttentionMask) -> Tensor:
    """(1, h, w): where the row attended; where tiles overlap and disagree, by half."""
    if job.tiling is None:
        return mask.tiles[0]
    return job.tiling.join(torch.stack(mask.tiles), *job.now.latents[0].shape[-2:])[0]


def degraded(
    batch: Sequence[Job],
    rows: Rows,
    network_rows: Sequence[NetworkRow],
    latents: Latents,
    outputs: Latents,
    masks: Masks,
) -> Latents:
    """The batch's latents, those of `network_rows` blurred where the network attended when it predicted `outputs`."""
    jobs = [entry.job for entry in network_rows]
    trajectories = [batch[i].now for i in jobs]
    signal = [trajectory.schedule.signal[trajectory.row] for trajectory in trajectories]
    clean = denoised(latents[jobs], outputs, rows.of(jobs))
    latents = latents.clone()
    latents[jobs] = degrade(latents[jobs], clean, masks, torch.tensor(signal).to(latents))
    return latents


def composed(batch: Sequence[Job], cond: Latents, uncond: Mapping[int, Latent]) -> Latents:
    """One output for each job, composed where AND joins several prompts; a single one keeps its very bits."""
    outputs: list[Latent] = []
    for i, (job, own) in enumerate(zip(batch, cond.split([job.num_parts for job in batch]), strict=True)):
        weights = torch.tensor(weights_of(job), device=cond.device)
        outputs.append(own[0] if job.num_parts == 1 else compose(own, uncond[i], weights))
    return torch.stack(outputs)


def with_guidance(batch: Sequence[Job], network_rows: Sequence[NetworkRow], outputs: Latents) -> Latents:
    """One output for each job: guidance applied to all that the network predicted for it."""
    by_kind: dict[RowKind, dict[int, Latent]] = {kind: {} for kind in get_args(RowKind)}
    for entry, output in zip(network_rows, outputs, strict=True):
        by_kind[entry.kind][entry.job] = output
    uncond, uncond_image, pag, sag = (by_kind[kind] for kind in ("uncond", "uncond_image", "pag", "sag"))
    cond = outputs[: sum(job.num_parts for job in batch)]
    if len(cond) > len(batch):
        cond = composed(batch, cond, uncond)
    guided = [i for i in uncond if batch[i].guided]
    specs = [batch[i].spec for i in guided]

    result = cond.clone()
    if guided:
        guided_cond, guided_uncond = cond[guided], torch.stack([uncond[i] for i in guided])
        mixed = guide(guided_cond, guided_uncond, torch.tensor([spec.guidance for spec in specs], device=cond.device))
        if uncond_image:
            scales = [spec.image_guidance if isinstance(spec, Edit) else 1.0 for spec in specs]
            without = torch.stack([uncond_image.get(i, uncond[i]) for i in guided])
            mixed = guide_image(mixed, guided_uncond, without, torch.tensor(scales, device=cond.device))
        result[guided] = mixed
    if pag:
        scales = torch.tensor([batch[i].spec.pag_scale for i in pag], device=cond.device)
        result[[*pag]] = guide_away(result[[*pag]], cond[[*pag]], torch.stack([*pag.values()]), scales)
    if sag:
        scales = torch.tensor([batch[i].spec.sag_scale for i in sag], device=cond.device)
        sharp = torch.stack([uncond.get(i, cond[i]) for i in sag])
        result[[*sag]] = guide_away(result[[*sag]], sharp, torch.stack([*sag.values()]), scales)
    if any(spec.guidance_rescale for spec in specs):
        phi = torch.tensor([spec.guidance_rescale for spec in specs], device=cond.device)
        mixed = result[guided]
        # where(), because a row without rescaling must keep its very bits.
        result[guided] = torch.where(phi.view(-1, 1, 1, 1) > 0, rescale(mixed, cond[guided], phi), mixed)
    return result


def blended(trajectory: Trajectory, latent: torch.Tensor) -> torch.Tensor:
    """Restore the kept part of an inpainted latent, (c, h, w), at the noise level of the next row."""
    if trajectory.blend is None:
        return latent
    blend, after = trajectory.blend, trajectory.row + 1
    kept = float(trajectory.schedule.signal[after]) * blend.init + float(trajectory.schedule.sigma[after]) * blend.noise
    return (1 - blend.mask) * kept + blend.mask * latent


def weights_of(job: Job) -> tuple[float, ...]:
    assert job.encoded is not None
    return job.encoded.weights
