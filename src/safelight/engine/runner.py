"""One network call for a batch of unlike jobs, and one table update after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import torch

from safelight.diffusion.advance import Rows, advance, denoised
from safelight.diffusion.guidance import compose, degrade, guide, lead_away, look, rescale
from safelight.diffusion.noise import draw
from safelight.diffusion.shapes import Latent, Latents, Masks
from safelight.engine.asks import About, Ask, asks_of, conditions_for, follow_ups
from safelight.engine.job import Job, Walk
from safelight.models.backends.denoiser import Denoiser
from safelight.models.backends.tiled import tiled
from safelight.models.hooks.salience import Salience
from safelight.models.networks.load import Model
from safelight.spec import Edit

MOST_TILES = 128
"""In one call of the network."""


class Runner:
    """Keeps nothing between calls; a model's denoiser stays with the model."""

    def __init__(self, denoiser_for: Callable[[Model], Denoiser]) -> None:
        self.denoiser_for = denoiser_for

    def denoise(self, batch: Sequence[Job], rows: Rows, *, budget_megapixels: float = math.inf) -> Latents:
        """What the network predicts for each job, guidance applied; (b, c, h, w) float32.

        A canvas drawn in tiles may have more of them than the budget allows at once: it is then several calls. What
        some jobs ask next depends on what they were told: these share a second call.
        """
        denoise = self.denoiser_over(batch[0], budget_megapixels)
        latents = torch.stack([job.now.latents[0] for job in batch])
        asks = asks_of(batch)
        after = follow_ups(batch, asks)
        salience = Salience([place in after for place in range(len(asks))]) if after else None
        outputs = answers(denoise, batch, rows, asks, latents, salience=salience)
        if salience is not None:
            assert salience.masks is not None
            again = [*after.values()]
            latents = degraded(batch, rows, again, latents, outputs[[*after]], salience.masks)
            outputs = torch.cat([outputs, answers(denoise, batch, rows, again, latents)])
            asks += again
        return with_guidance(batch, asks, outputs)

    def advance(self, batch: Sequence[Job], rows: Rows, outputs: Latents) -> None:
        """Move every job one row on, or none of them."""
        walks = [job.now for job in batch]
        histories = [[output, *walk.outputs[:-1]] for walk, output in zip(walks, outputs, strict=True)]
        past_latents = stacked([walk.latents[: rows.depth] for walk in walks])
        past_outputs = stacked([history[: rows.depth] for history in histories])
        moved = advance(past_latents, past_outputs, rows, self.noise(batch))
        moved = [blended(walk, latent) for walk, latent in zip(walks, moved, strict=True)]
        for walk, history, latent in zip(walks, histories, moved, strict=True):
            walk.outputs = history
            walk.latents = [latent, *walk.latents[:-1]]
            walk.fresh_noise = None
            walk.row += 1

    def estimates(self, batch: Sequence[Job], rows: Rows, outputs: Latents) -> Latents:
        """The clean picture each job is heading for, as latents; call before `advance`."""
        return denoised(torch.stack([job.now.latents[0] for job in batch]), outputs, rows)

    def denoiser_over(self, job: Job, budget_megapixels: float) -> Denoiser:
        """The model's own, or where the canvas is drawn in tiles, one over canvases."""
        denoise, tiling = self.denoiser(job.model), job.tiling
        if tiling is None:
            return denoise
        most = budget_megapixels // (job.megapixels / job.rows / job.num_tiles)
        scale = job.model.description.vae_scale
        return tiled(denoise, tiling, most_rows=int(max(1, min(most, MOST_TILES))), scale=scale)

    def denoiser(self, model: Model) -> Denoiser:
        if self not in model.kept:
            model.kept[self] = self.denoiser_for(model)
        return model.kept[self]

    def noise(self, batch: Sequence[Job]) -> Latents | None:
        """Fresh noise for those rows whose sampler draws it, zeros for the others."""
        if not any(job.now.schedule.draws[job.now.row] for job in batch):
            return None
        for job in batch:
            walk = job.now
            if walk.schedule.draws[walk.row] and walk.fresh_noise is None:
                assert job.generator is not None
                shape, device = walk.latents[0].shape, walk.latents[0].device
                walk.fresh_noise = draw(job.generator, tuple(shape)).to(device)
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
    asks: Sequence[Ask],
    latents: Latents,
    *,
    salience: Salience | None = None,
) -> Latents:
    """One call of the network about the batch's latents."""
    jobs, channels = [ask.job for ask in asks], latents.shape[1]
    inputs = latents * rows.input_scale.view(-1, 1, 1, 1)
    extra = [job.now.extra_channels for job in batch if job.now.extra_channels is not None]
    if extra:
        inputs = torch.cat([inputs, torch.stack(extra)], dim=1)
    inputs = inputs[jobs]
    inputs[[place for place, ask in enumerate(asks) if ask.about == "blind"], channels:] = 0
    return denoise(inputs, rows.timesteps[jobs], conditions_for(batch, asks, salience))


def degraded(
    batch: Sequence[Job], rows: Rows, asks: Sequence[Ask], latents: Latents, outputs: Latents, masks: Masks
) -> Latents:
    """The batch's latents, those of `asks` with a blur on what the network looked at when it said `outputs`."""
    jobs = [ask.job for ask in asks]
    walks = [batch[i].now for i in jobs]
    signal = [walk.schedule.signal[walk.row] for walk in walks]
    clean = denoised(latents[jobs], outputs, rows.of(jobs))
    latents = latents.clone()
    latents[jobs] = degrade(latents[jobs], clean, masks, torch.tensor(signal).to(latents))
    return latents


def composed(batch: Sequence[Job], cond: Latents, uncond: Mapping[int, Latent]) -> Latents:
    """One output for each job, of the one or several that it asked for; a lone one keeps its very bits."""
    outputs: list[Latent] = []
    for i, (job, own) in enumerate(zip(batch, cond.split([job.num_parts for job in batch]), strict=True)):
        weights = torch.tensor(weights_of(job), device=cond.device)
        outputs.append(own[0] if job.num_parts == 1 else compose(own, uncond[i], weights))
    return torch.stack(outputs)


def with_guidance(batch: Sequence[Job], asks: Sequence[Ask], outputs: Latents) -> Latents:
    """Where each job is led, by all that the network said."""
    said: dict[About, dict[int, Latent]] = {about: {} for about in get_args(About)}
    for ask, output in zip(asks, outputs, strict=True):
        said[ask.about][ask.job] = output
    uncond, blind, lost, dulled = (said[about] for about in ("contrast", "blind", "perturbed", "degraded"))
    cond = outputs[: sum(job.num_parts for job in batch)]
    if len(cond) > len(batch):
        cond = composed(batch, cond, uncond)
    guided = [i for i in uncond if batch[i].guided]
    specs = [batch[i].spec for i in guided]

    led = cond.clone()
    if guided:
        chosen, contrast = cond[guided], torch.stack([uncond[i] for i in guided])
        mixed = guide(chosen, contrast, torch.tensor([spec.guidance for spec in specs], device=cond.device))
        if blind:
            scales = [spec.image_guidance if isinstance(spec, Edit) else 1.0 for spec in specs]
            unseen = torch.stack([blind.get(i, uncond[i]) for i in guided])
            mixed = look(mixed, contrast, unseen, torch.tensor(scales, device=cond.device))
        led[guided] = mixed
    if lost:
        scales = torch.tensor([batch[i].spec.pag_scale for i in lost], device=cond.device)
        led[[*lost]] = lead_away(led[[*lost]], cond[[*lost]], torch.stack([*lost.values()]), scales)
    if dulled:
        scales = torch.tensor([batch[i].spec.sag_scale for i in dulled], device=cond.device)
        sharp = torch.stack([uncond.get(i, cond[i]) for i in dulled])
        led[[*dulled]] = lead_away(led[[*dulled]], sharp, torch.stack([*dulled.values()]), scales)
    if any(spec.guidance_rescale for spec in specs):
        phi = torch.tensor([spec.guidance_rescale for spec in specs], device=cond.device)
        mixed = led[guided]
        # where(), because a row that asks for none must keep its very bits.
        led[guided] = torch.where(phi.view(-1, 1, 1, 1) > 0, rescale(mixed, cond[guided], phi), mixed)
    return led


def blended(walk: Walk, latent: torch.Tensor) -> torch.Tensor:
    """Put back what inpainting keeps, at the noise level of the next row."""
    if walk.blend is None:
        return latent
    blend, after = walk.blend, walk.row + 1
    kept = float(walk.schedule.signal[after]) * blend.init + float(walk.schedule.sigma[after]) * blend.noise
    return (1 - blend.mask) * kept + blend.mask * latent


def weights_of(job: Job) -> tuple[float, ...]:
    assert job.told is not None
    return job.told.weights
