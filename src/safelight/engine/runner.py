"""One network call for a batch of unlike jobs, and one table update after it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from safelight.diffusion.advance import Rows, advance, denoised
from safelight.diffusion.noise import draw
from safelight.diffusion.shapes import Latent, Latents
from safelight.engine.guided import Predicted, wanting_rows, with_guidance
from safelight.engine.job import Job, Trajectory
from safelight.engine.rows import NetworkRow, conditions_for, first_rows
from safelight.models.backends.denoiser import Conditions, Denoiser
from safelight.models.backends.tiled import tiled
from safelight.models.networks.load import Model

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
        network_rows = first_rows(batch)
        conditions = conditions_for(batch, network_rows)
        latents = torch.stack([batch[entry.job].now.latents[0] for entry in network_rows])
        outputs = answers(denoise, batch, rows, network_rows, latents, conditions)
        predicted = Predicted(batch=batch, rows=rows, network_rows=network_rows, outputs=outputs, conditions=conditions)
        if second := second_rows(predicted):
            latents = torch.stack([latent for _, latent in second])
            again = [entry for entry, _ in second]
            outputs = answers(denoise, batch, rows, again, latents, conditions_for(batch, again))
            predicted = replace(
                predicted,
                network_rows=[*network_rows, *again],
                outputs=torch.cat([predicted.outputs, outputs]),
            )
        return with_guidance(predicted)

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


def second_rows(first: Predicted) -> list[tuple[NetworkRow, Latent]]:
    """The rows of the second call, which effects want, and their latents."""
    found: list[tuple[NetworkRow, Latent]] = []
    for i, name, active in wanting_rows(first.batch):
        for wanted in active.rows():
            if wanted.second_call:
                source = "cond" if first.uncond(i) is None else "uncond"
                alike = next(entry for entry in first.network_rows if (entry.job, entry.kind) == (i, source))
                found.append((replace(alike, kind=name), active.second_latent(first.of_effect(i, name))))
    return found


def answers(
    denoise: Denoiser,
    batch: Sequence[Job],
    rows: Rows,
    network_rows: Sequence[NetworkRow],
    latents: Latents,
    conditions: Conditions,
) -> Latents:
    """One network call: the rows' predictions, (n, c, h, w), of their latents, (n, c, h, w)."""
    jobs, channels = [entry.job for entry in network_rows], latents.shape[1]
    inputs = latents * rows.input_scale[jobs].view(-1, 1, 1, 1)
    extra = [batch[i].now.extra_channels for i in jobs]
    if any(channel is not None for channel in extra):
        inputs = torch.cat([inputs, torch.stack([channel for channel in extra if channel is not None])], dim=1)
    inputs[[place for place, entry in enumerate(network_rows) if entry.kind == "uncond_image"], channels:] = 0
    return denoise(inputs, rows.timesteps[jobs], conditions)


def blended(trajectory: Trajectory, latent: torch.Tensor) -> torch.Tensor:
    """Restore the kept part of an inpainted latent, (c, h, w), at the noise level of the next row."""
    if trajectory.blend is None:
        return latent
    blend, after = trajectory.blend, trajectory.row + 1
    kept = float(trajectory.schedule.signal[after]) * blend.init + float(trajectory.schedule.sigma[after]) * blend.noise
    return (1 - blend.mask) * kept + blend.mask * latent
