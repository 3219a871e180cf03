"""One network call for a batch of unlike jobs, and one table update after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

import torch

from safelight.acceleration.denoiser import Conditions, Denoiser, stack
from safelight.acceleration.tiled import tiled
from safelight.diffusion.advance import Rows, advance, denoised
from safelight.diffusion.guidance import compose, guide, look, perturb, rescale
from safelight.diffusion.noise import draw
from safelight.diffusion.shapes import Latent, Latents
from safelight.engine.job import Job, Walk
from safelight.models.encode import Conditioning
from safelight.models.load import Model
from safelight.spec import Edit

HIGH_SCORE, LOW_SCORE = 6.0, 2.5
"""How beautiful SDXL's refiner is told that the picture is, and what guidance leads away from: its authors' numbers."""
MOST_TILES = 128
"""In one call of the network."""


class Runner:
    """Keeps nothing between calls; a model's denoiser stays with the model."""

    def __init__(self, denoiser_for: Callable[[Model], Denoiser]) -> None:
        self.denoiser_for = denoiser_for

    def denoise(self, batch: Sequence[Job], rows: Rows, *, budget_megapixels: float = math.inf) -> Latents:
        """What the network predicts for each job, guidance applied; (b, c, h, w) float32.

        A canvas drawn in tiles may have more of them than the budget allows at once: it is then several calls.
        """
        asked = [i for i, job in enumerate(batch) for _ in range(job.num_parts)]
        contrasted = [i for i, job in enumerate(batch) if job.contrasted]
        blinded = [i for i, job in enumerate(batch) if job.blinded]
        perturbed = [i for i, job in enumerate(batch) if job.perturbed]
        network_rows = [*asked, *contrasted, *blinded, *perturbed]

        latents = torch.stack([job.now.latents[0] for job in batch]) * rows.input_scale.view(-1, 1, 1, 1)
        extra = [job.now.extra_channels for job in batch if job.now.extra_channels is not None]
        if extra:
            latents = torch.cat([latents, torch.stack(extra)], dim=1)
        told = [now for job in batch for now in positives_of(job)]
        told += [negative_of(batch[i]) for i in [*contrasted, *blinded]]
        told += [positives_of(batch[i])[0] for i in perturbed]

        inputs = latents[network_rows]
        ends = list(accumulate(map(len, (asked, contrasted, blinded, perturbed))))
        inputs[ends[1] : ends[2], batch[0].now.latents[0].shape[0] :] = 0
        outputs = self.denoiser_over(batch[0], budget_megapixels)(
            inputs, rows.timesteps[network_rows], conditions_for(batch, asked, [*contrasted, *blinded], perturbed, told)
        )
        cond = outputs[: ends[0]]
        uncond, blind, lost = (
            dict(zip(some, outputs[start:end], strict=True))
            for some, (start, end) in zip((contrasted, blinded, perturbed), pairwise(ends), strict=True)
        )
        if len(asked) > len(batch):
            cond = composed(batch, cond, uncond)
        guided = [i for i in contrasted if batch[i].guided]
        return with_guidance(batch, guided, cond, uncond, blind, lost) if guided or lost else cond

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


def composed(batch: Sequence[Job], cond: Latents, uncond: Mapping[int, Latent]) -> Latents:
    """One output for each job, of the one or several that it asked for; a lone one keeps its very bits."""
    outputs: list[Latent] = []
    for i, (job, own) in enumerate(zip(batch, cond.split([job.num_parts for job in batch]), strict=True)):
        weights = torch.tensor(weights_of(job), device=cond.device)
        outputs.append(own[0] if job.num_parts == 1 else compose(own, uncond[i], weights))
    return torch.stack(outputs)


def with_guidance(
    batch: Sequence[Job],
    guided: list[int],
    cond: Latents,
    uncond: Mapping[int, Latent],
    blind: Mapping[int, Latent],
    lost: Mapping[int, Latent],
) -> Latents:
    """`uncond` and `blind` are what the network makes of the negative prompt, the latter without seeing a picture;
    `lost` is what it makes of the prompt where it has no sense of structure."""
    outputs = cond.clone()
    specs = [batch[i].spec for i in guided]
    if guided:
        chosen, contrast = cond[guided], torch.stack([uncond[i] for i in guided])
        mixed = guide(chosen, contrast, torch.tensor([spec.guidance for spec in specs], device=cond.device))
        if blind:
            scales = [spec.image_guidance if isinstance(spec, Edit) else 1.0 for spec in specs]
            unseen = torch.stack([blind.get(i, uncond[i]) for i in guided])
            mixed = look(mixed, contrast, unseen, torch.tensor(scales, device=cond.device))
        outputs[guided] = mixed
    if lost:
        led = [*lost]
        scales = torch.tensor([batch[i].spec.pag_scale for i in led], device=cond.device)
        outputs[led] = perturb(outputs[led], cond[led], torch.stack([*lost.values()]), scales)
    if any(spec.guidance_rescale for spec in specs):
        phi = torch.tensor([spec.guidance_rescale for spec in specs], device=cond.device)
        mixed = outputs[guided]
        # where(), because a row that asks for none must keep its very bits.
        outputs[guided] = torch.where(phi.view(-1, 1, 1, 1) > 0, rescale(mixed, cond[guided], phi), mixed)
    return outputs


def conditions_for(
    batch: Sequence[Job],
    asked: list[int],
    contrasted: list[int],
    perturbed: list[int],
    told: Sequence[Conditioning],
) -> Conditions:
    """Of the rows that are asked about prompts, of those about negative prompts, and of the perturbed ones."""
    network_rows = [*asked, *contrasted, *perturbed]
    negatives = [False] * len(asked) + [True] * len(contrasted) + [False] * len(perturbed)
    rows = [(batch[i], negative) for i, negative in zip(network_rows, negatives, strict=True)]
    context, mask, pooled = stack(told)
    time_ids = guidance = None
    if batch[0].model.description.family.told_size:
        assert pooled is not None
        told_score = batch[0].model.description.family.told_score
        ids = [
            [h, w, 0, 0, *((LOW_SCORE if negative else HIGH_SCORE,) if told_score else (h, w))]
            for (w, h), negative in zip((job.size for job, _ in rows), negatives, strict=True)
        ]
        time_ids = torch.tensor(ids, device=context.device, dtype=pooled.dtype)
    if batch[0].model.description.takes_guidance:
        guidance = torch.tensor([batch[i].spec.guidance for i in network_rows], device=context.device)
    adapters = controls = pictures = freeu = None
    if any(job.loras for job in batch):
        adapters = [job.adapted for job, _ in rows]
    if any(job.led.controls for job in batch):
        controls = [job.steered(negative=negative) for job, negative in rows]
    if any(job.led.pictures for job in batch):
        pictures = [job.looked_at(negative=negative) for job, negative in rows]
    if any(job.spec.freeu for job in batch):
        freeu = [job.spec.freeu for job, _ in rows]
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
        perturbed=[False] * (len(rows) - len(perturbed)) + [True] * len(perturbed) if perturbed else None,
    )


def blended(walk: Walk, latent: torch.Tensor) -> torch.Tensor:
    """Put back what inpainting keeps, at the noise level of the next row."""
    if walk.blend is None:
        return latent
    blend, after = walk.blend, walk.row + 1
    kept = float(walk.schedule.signal[after]) * blend.init + float(walk.schedule.sigma[after]) * blend.noise
    return (1 - blend.mask) * kept + blend.mask * latent


def positives_of(job: Job) -> list[Conditioning]:
    """What the coming call is told of the job's prompt: of each of its parts, where AND joins several."""
    assert job.told is not None
    return [steps[job.step] for steps in job.told.positive]


def weights_of(job: Job) -> tuple[float, ...]:
    assert job.told is not None
    return job.told.weights


def negative_of(job: Job) -> Conditioning:
    assert job.told is not None
    assert job.told.negative is not None
    return job.told.negative[job.step]
