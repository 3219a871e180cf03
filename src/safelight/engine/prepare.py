"""From a spec to a job that can take its first step.

Noise is drawn in the order of diffusers' pipelines, so that a seed gives the same picture in both: for the start
picture's latent (sampled by the VAE), the first noise, the masked picture's latent, and then the noise of the
sampler's steps.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from safelight.diffusion.noise import draw, seeded
from safelight.diffusion.schedule import HISTORY, Schedule
from safelight.diffusion.schedules import StepSpacing, schedule_for
from safelight.diffusion.shapes import Latent
from safelight.engine.job import Blend, Job, Overlay, Trajectory
from safelight.errors import UnsupportedOption
from safelight.imaging.canvas import black_and_white, box_around, fit_to, inpaint_masks
from safelight.models.checkpoints.families import Description
from safelight.models.networks.latents import decode, encode, encode_unscaled, from_pil, to_pil
from safelight.spec import Denoised, Edit, HighresFix, ImageToImage, Inpaint, Refined, TextToImage, Variation
from safelight.spec.fields import Fit

LATENT_MODES: Mapping[str, tuple[str, bool]] = {
    "latent": ("bicubic", False),
    "latent-antialiased": ("bicubic", True),
    "latent-bilinear": ("bilinear", False),
    "latent-bilinear-antialiased": ("bilinear", True),
    "latent-nearest": ("nearest", False),
    "latent-nearest-exact": ("nearest-exact", False),
}
"""Resampling of latents, and whether with antialiasing."""


def prepare(job: Job, *, cache: Path | None) -> None:
    """Give the job its generator and its first trajectory."""
    for name in ("loras", "controls", "picture_prompts", "regions", "freeu", "pag_scale", "sag_scale"):
        loaded = name.removesuffix("_scale") in job.effects
        assert bool(getattr(job.spec, name)) == loaded, f"the spec's {name} were not loaded"
    networks = [model for model in (job.model, job.refiner) if model]
    for active in job.effects.values():
        active.require(job.spec, networks)
    require_mask_where_one_is_read(job.spec, job.model.description, name=job.model.name)
    job.generator = seeded(job.spec.seed)
    match job.spec:
        case TextToImage():
            job.trajectory = from_noise(job, cache)
        case ImageToImage():
            job.trajectory = from_picture(job, job.spec, cache)
        case Inpaint():
            job.trajectory = from_masked_picture(job, job.spec, cache)
        case Edit():
            job.trajectory = from_instruction(job, job.spec, cache)
        case Variation():
            job.trajectory = from_noise(job, cache)
    fit_effects(job)
    first = job.now.schedule
    if job.highres is None:
        job.passes = (first.steps,)
        job.now.schedule = until_refined(job, first)
    else:
        second = second_schedule(job, job.highres, cache)
        job.passes = (first.steps, second.steps)
        until_refined(job, second)  # raises now, not after the first pass


def require_mask_where_one_is_read(spec: Denoised, about: Description, *, name: str) -> None:
    """Raises UnsupportedOption if a network made for inpainting gets no mask."""
    if about.inpaints_natively and not isinstance(spec, Inpaint):
        missing = "a mask too" if isinstance(spec, ImageToImage) else "an init picture and a mask"
        raise UnsupportedOption("model", f"{name} is made for inpainting: give it {missing}")


def from_noise(job: Job, cache: Path | None) -> Trajectory:
    schedule = plan(job, cache, steps=job.spec.steps)
    return trajectory_from(schedule, fresh(job) * schedule.initial_scale)


def from_picture(job: Job, spec: ImageToImage, cache: Path | None) -> Trajectory:
    schedule = plan(job, cache, steps=spec.steps, strength=spec.strength)
    init = to_latent(job, fit_to(enlarged(job, spec), spec.width, spec.height, spec.fit))
    return trajectory_from(schedule, noised(schedule, init, fresh(job)))


def enlarged(job: Job, spec: ImageToImage) -> Image.Image:
    """The init picture; for tiles, enlarged to the final size, up to rounding."""
    image = job.pictures[spec.init]
    scale = max(spec.width / image.width, spec.height / image.height)
    if spec.tiles is None or spec.tiles.upscaler == "lanczos" or scale <= 1:
        return image
    return job.enlarge(image, scale, spec.tiles.upscaler)


def from_instruction(job: Job, spec: Edit, cache: Path | None) -> Trajectory:
    """From noise, or at lower strength from the noised picture; the network sees the picture either way."""
    schedule = plan(job, cache, steps=spec.steps, strength=spec.strength)
    image = fit_to(job.pictures[spec.init], spec.width, spec.height, spec.fit)
    device = job.model.placement.device
    with job.model.vae_lock:
        seen = encode_unscaled(job.model.vae, from_pil(image)[None].to(device))[0]
    if spec.strength == 1:
        trajectory = trajectory_from(schedule, fresh(job) * schedule.initial_scale)
    else:
        init = to_latent(job, image)
        trajectory = trajectory_from(schedule, noised(schedule, init, fresh(job)))
    trajectory.extra_channels = seen
    return trajectory


def from_masked_picture(job: Job, spec: Inpaint, cache: Path | None) -> Trajectory:
    """Both ways of inpainting: a network that takes the mask (9 channels), or blending after every call."""
    schedule = plan(job, cache, steps=spec.steps, strength=spec.strength)
    native = job.model.description.inpaints_natively
    image, mask = masked_canvas(job, spec)

    init = to_latent(job, image) if not native or spec.strength < 1 else None
    noise = fresh(job)
    if spec.strength == 1:
        start = noise * schedule.initial_scale
    else:
        assert init is not None
        start = noised(schedule, init, noise)
    trajectory = trajectory_from(schedule, start)

    if native:
        trajectory.extra_channels = mask_channels(job, image, mask)
    else:
        assert init is not None
        fresh(job)  # diffusers encodes the masked picture here too; its draw keeps our generator in step
        trajectory.blend = Blend(mask=latent_sized(mask, job), init=init, noise=noise)
    return trajectory


def mask_channels(job: Job, image: Image.Image, mask: Image.Image) -> torch.Tensor:
    """(1 + c, h, w): the mask and the masked latent, the further inputs of a network made for inpainting."""
    kept = from_pil(image) * (from_pil(mask.convert("RGB")) < 0)
    return torch.cat([latent_sized(mask, job), to_latent(job, kept)]).to(job.model.placement.device)


def masked_canvas(job: Job, spec: Inpaint) -> tuple[Image.Image, Image.Image]:
    """The picture and mask at the size that is drawn; sets the job's overlay."""
    original = job.pictures[spec.init].convert("RGB")
    mask = job.pictures[spec.mask].convert("L")
    if mask.size != original.size:
        mask = fit_to(mask, *original.size, "stretch")
    if spec.only_masked:
        hard, soft = inpaint_masks(mask, spec)
        box = box_around(hard, padding=spec.padding, width=spec.width, height=spec.height)
        job.overlay = Overlay(original=original, soft_mask=soft, box=box)
        image, mask = (fit_to(part.crop(box), spec.width, spec.height, "pad") for part in (original, hard))
        return image, drawn_mask(job, spec, black_and_white(mask))
    image = fit_to(original, spec.width, spec.height, spec.fit)
    hard, soft = inpaint_masks(fit_to(mask, spec.width, spec.height, spec.fit), spec)
    job.overlay = Overlay(original=image, soft_mask=soft, box=None)
    return image, drawn_mask(job, spec, hard)


def drawn_mask(job: Job, spec: Inpaint, hard: Image.Image) -> Image.Image:
    """The mask for the latents. A soft mask blends pixel by pixel at the end, so the area drawn here may be one latent
    pixel larger: otherwise the network would continue what the picture shows at the mask's border, mostly the old
    background."""
    reach = 2 * job.model.description.vae_scale + 1
    return hard.filter(ImageFilter.MaxFilter(reach)) if spec.soft_mask else hard


def next_trajectory(job: Job, cache: Path | None) -> None:
    """The second pass of highres: the first result, enlarged and denoised again from part of the noise."""
    highres, first = job.highres, job.now
    assert highres is not None
    schedule = until_refined(job, second_schedule(job, highres, cache))
    job.steps_before = first.schedule.steps
    job.enlarged = True
    if highres.upscaler in LATENT_MODES:
        size = latent_size(job)[1:]
        mode, antialias = LATENT_MODES[highres.upscaler]
        init = torch.nn.functional.interpolate(first.latents[0][None], size=size, mode=mode, antialias=antialias)[0]
    else:
        with job.model.vae_lock:
            [small] = to_pil(decode(job.model.vae, first.latents[0][None]))
        if highres.upscaler != "lanczos":
            small = job.enlarge(small, highres.scale, highres.upscaler)
        init = to_latent(job, small.resize(job.size, Image.Resampling.LANCZOS))
    job.trajectory = trajectory_from(schedule, noised(schedule, init, fresh(job)))
    fit_effects(job)


def until_refined(job: Job, schedule: Schedule) -> Schedule:
    """The steps at noise levels above the switch, as diffusers' `denoising_end` counts; at least one for each model.

    Raises:
        UnsupportedOption: there is but one step.
    """
    if job.refiner is None:
        return schedule
    assert isinstance(job.spec, Refined)
    assert job.spec.refiner is not None
    require_two_steps(schedule.steps)
    levels = int(job.model.description.scheduler.get("num_train_timesteps", 1000))
    first_rows = np.searchsorted(schedule.step_of, np.arange(schedule.steps))
    above = int((schedule.timesteps[first_rows] >= round(levels * (1 - job.spec.refiner.switch))).sum())
    return schedule.first(min(max(above, 1), schedule.steps - 1))


def require_two_steps(steps: int) -> None:
    """Raises UnsupportedOption if either model would have no step."""
    if steps < 2:
        raise UnsupportedOption(
            "refiner", "base and refiner need a step each, but there is only one: use more steps, or a higher strength"
        )


def refine(job: Job, cache: Path | None) -> None:
    """Let the refiner take over at the base's noise level; effects made for the base end here."""
    assert job.refiner is not None
    before, base = job.now, job.model
    job.steps_before += before.schedule.steps
    # The picture is decoded by the autoencoder that was chosen for it.
    vae_digest = base.vae_digest or base.digest
    job.model = replace(job.refiner, vae=base.vae, vae_lock=base.vae_lock, vae_digest=vae_digest)
    job.refiner = None
    widths = [encoder.width for encoder in job.model.text_encoders]
    job.embeddings = tuple(one for one in job.embeddings if [*one.widths] == widths)
    job.effects = {name: kept for name, active in job.effects.items() if (kept := active.for_refiner())}
    job.encoded = None
    left, steps = job.total_steps - job.steps_before, (job.highres and job.highres.steps) or job.spec.steps
    # The base's own steps: where two configurations space them differently, one would be left out or taken twice.
    about = steps_of(base.description, job.model.description)
    # A thousandth of a step more, or the share could round to a step fewer.
    strength = (left + 0.001) / steps
    schedule = schedule_for(job.spec.sampler, about, steps=steps, strength=strength, cache=cache)
    job.trajectory = trajectory_from(schedule, before.latents[0])
    fit_effects(job)
    if isinstance(job.spec, Inpaint):
        go_on_masked(job, job.spec, before)


def go_on_masked(job: Job, spec: Inpaint, before: Trajectory) -> None:
    """Continue inpainting with the refiner: as before, or by its own way if one takes masks and the other blends."""
    native = job.model.description.inpaints_natively
    if native == (before.blend is None):
        job.now.blend, job.now.extra_channels = before.blend, before.extra_channels
        return
    image, mask = masked_canvas(job, spec)
    if native:
        job.now.extra_channels = mask_channels(job, image, mask)
    else:
        job.now.blend = Blend(mask=latent_sized(mask, job), init=to_latent(job, image), noise=fresh(job))


def steps_of(base: Description, refiner: Description) -> Mapping[str, Any]:
    """The base's scheduler, over what the refiner's network predicts."""
    if base.prediction == refiner.prediction:
        return base.scheduler
    unchosen = [name for name in base.scheduler.get("_use_default_values", ()) if name != "prediction_type"]
    return {**base.scheduler, "prediction_type": refiner.prediction, "_use_default_values": unchosen}


def fit_effects(job: Job) -> None:
    """Prepare the job's effects for the size that is drawn now."""

    def at_size(picture: str | Image.Image, fit: Fit) -> Image.Image:
        return fitted(job, job.pictures[picture] if isinstance(picture, str) else picture, fit)

    job.now.effects = {name: active.at_size(at_size) for name, active in job.effects.items()}


def fitted(job: Job, picture: Image.Image, fit: Fit) -> Image.Image:
    """An effect's picture at the drawn size; its part in the box if only the box around a mask is drawn."""
    overlay = job.overlay
    if overlay is None or overlay.box is None:
        return fit_to(picture, *job.size, fit)
    return fit_to(fit_to(picture, *overlay.original.size, fit).crop(overlay.box), *job.size, "pad")


def second_schedule(job: Job, highres: HighresFix, cache: Path | None) -> Schedule:
    return plan(job, cache, steps=highres.steps or job.spec.steps, strength=highres.strength)


def plan(job: Job, cache: Path | None, *, steps: int, strength: float = 1.0) -> Schedule:
    about = job.model.description
    pace = pace_for(about, job.size)
    return schedule_for(job.spec.sampler, about.scheduler, steps=steps, strength=strength, spacing=pace, cache=cache)


def pace_for(about: Description, size: tuple[int, int]) -> StepSpacing:
    """`size` is the picture's width and height in pixels."""
    width, height = (side // about.vae_scale // about.patch for side in size)
    return replace(about.family.step_spacing, patches=height * width)


def trajectory_from(schedule: Schedule, start: Latent) -> Trajectory:
    past = [torch.zeros_like(start)] * HISTORY
    return Trajectory(schedule=schedule, latents=[start, *past[1:]], outputs=list(past))


def noised(schedule: Schedule, init: Latent, noise: Latent) -> Latent:
    return float(schedule.signal[0]) * init + float(schedule.sigma[0]) * noise


def latent_size(job: Job) -> tuple[int, int, int]:
    width, height = job.size
    scale = job.model.description.vae_scale
    return job.model.description.latent_channels, height // scale, width // scale


def fresh(job: Job) -> Latent:
    """The next noise of this job's seed, on the model's device."""
    assert job.generator is not None
    return draw(job.generator, latent_size(job)).to(job.model.placement.device)


def to_latent(job: Job, image: Image.Image | torch.Tensor) -> Latent:
    """Encode an image, or pixels (3, h, w) in [-1, 1]."""
    tensor = from_pil(image) if isinstance(image, Image.Image) else image
    noise = fresh(job)[None]
    with job.model.vae_lock:
        return encode(job.model.vae, tensor[None].to(job.model.placement.device), noise)[0].float()


def latent_sized(mask: Image.Image, job: Job) -> torch.Tensor:
    """(1, h, w) of 0 and 1, taken at the nearest pixel as diffusers does."""
    pixels = (from_pil(mask.convert("RGB"))[:1] + 1) / 2
    small = torch.nn.functional.interpolate(pixels[None], size=latent_size(job)[1:])[0]
    return small.round().to(job.model.placement.device)
