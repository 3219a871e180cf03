"""SDXL's refiner against diffusers' "ensemble of expert denoisers": one pipeline until the switch, another after it."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.diffusion.checkpoints import diffusers_scheduler
from tests.fakes import SteppedEngine, draw, psnr, spec_for, with_scheduler
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import MIN_PSNR, PICTURES, is_telling
from tests.tiny_models import INIT, MASK, SIDE, load

from safelight.diffusion.samplers import find_sampler
from safelight.errors import UnsupportedOption
from safelight.events import Failed, Started, Stepped
from safelight.models.checkpoints.families import describe, require_successor
from safelight.models.networks.load import Model
from safelight.spec import Denoised, FreeU, HighresFix, Inpaint, TextToImage
from safelight.spec.parts import PinnedRefiner

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

Models = Callable[[str], Model]
References = Callable[[str], Reference]


def refined(spec: Denoised, base: Model, refiner: Model, switch: float = 0.8) -> Image.Image:
    with SteppedEngine() as job_service:
        use = PinnedRefiner(model="refiner", digest=refiner.digest, switch=switch)
        job = job_service.add(spec.model_copy(update={"refiner": use}), base, PICTURES, refiner=refiner)
        job_service.finish()
        steps = [event.step for event in job_service.events_of(job, Stepped)]
        assert steps == list(range(1, job_service.events_of(job, Started)[0].total_steps + 1))
        return job_service.image(job)


def pipeline(name: str, reference: Reference, sampler: str) -> Any:
    import diffusers

    kind: Any = getattr(diffusers, f"StableDiffusionXL{name}Pipeline")
    scheduler = diffusers_scheduler(find_sampler(sampler), dict(reference.description.scheduler))
    made = kind(**reference.components_for(kind, scheduler))
    made.set_progress_bar_config(disable=True)
    return made


def call_of(spec: Denoised) -> dict[str, Any]:
    return {
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt or None,
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "generator": torch.Generator("cpu").manual_seed(spec.seed),
    }


def by_two_pipelines(spec: TextToImage, base: Reference, refiner: Reference, switch: float) -> Image.Image:
    call = call_of(spec)
    size = {"width": spec.width, "height": spec.height}
    first, second = pipeline("", base, spec.sampler), pipeline("Img2Img", refiner, spec.sampler)
    with torch.no_grad():
        latents = first(**call, **size, denoising_end=switch, output_type="latent").images
        return second(**call, image=latents, denoising_start=switch).images[0]


def by_three_pipelines(spec: TextToImage, base: Reference, refiner: Reference, switch: float) -> Image.Image:
    """The base alone; the base over its picture, enlarged, from part of the noise; the refiner from the switch on."""
    assert spec.highres is not None
    call = call_of(spec)
    again, last = (pipeline("Img2Img", reference, spec.sampler) for reference in (base, refiner))
    with torch.no_grad():
        small = pipeline("", base, spec.sampler)(**call, width=spec.width, height=spec.height).images[0]
        size = round(spec.width * spec.highres.scale), round(spec.height * spec.highres.scale)
        start = {"image": small.resize(size, Image.Resampling.LANCZOS), "strength": spec.highres.strength}
        call["num_inference_steps"] = spec.highres.steps
        latents = again(**call, **start, denoising_end=switch, output_type="latent").images
        return last(**call, image=latents, denoising_start=switch).images[0]


def by_two_masked_pipelines(spec: Inpaint, base: Reference, refiner: Reference, switch: float) -> Image.Image:
    """Both inpaint from the beginning, and at the switch the second is handed what the first has got.

    diffusers' own way, `denoising_start`, takes the noisy latents for the picture that is kept, and noises them again.
    """
    first, second = (pipeline("Inpaint", reference, spec.sampler) for reference in (base, refiner))
    masked: dict[str, Any] = {
        "image": PICTURES[spec.init],
        "mask_image": PICTURES[spec.mask],
        "strength": spec.strength,
        "width": spec.width,
        "height": spec.height,
        "padding_mask_crop": spec.padding if spec.only_masked else None,
    }
    drawn: list[torch.Tensor] = []
    levels: list[int] = []

    def keep(_pipeline: Any, _step: int, timestep: torch.Tensor, now: dict[str, Any]) -> dict[str, Any]:
        drawn.append(now["latents"].clone())
        levels.append(int(timestep))
        return now

    def hand_over(_pipeline: Any, step: int, _timestep: torch.Tensor, now: dict[str, Any]) -> dict[str, Any]:
        last_of_base = sum(level >= 1000 * (1 - switch) for level in levels) - 1
        return {"latents": drawn[step]} if step == last_of_base else now

    with torch.no_grad():
        first(**call_of(spec), **masked, callback_on_step_end=keep)
        image = second(**call_of(spec), **masked, callback_on_step_end=hand_over).images[0]
    if spec.only_masked:
        return image
    return second.image_processor.apply_overlay(PICTURES[spec.mask], PICTURES[spec.init], image)


@pytest.mark.parametrize(("sampler", "switch"), [("Euler", 0.8), ("Euler", 0.55), ("DDIM", 0.5), ("DPM++ 2M", 0.6)])
def test_a_refiner_goes_on_where_the_base_left_off(
    sampler: str, switch: float, model: Models, reference: References
) -> None:
    spec = spec_for(model("sdxl"), sampler=sampler, steps=10, guidance=5.0, negative_prompt="the dog", seed=7)
    assert isinstance(spec, TextToImage)
    expected = by_two_pipelines(spec, reference("sdxl"), reference("sdxl_refiner"), switch)
    assert is_telling(expected)
    assert psnr(refined(spec, model("sdxl"), model("sdxl_refiner"), switch), expected) >= MIN_PSNR


@pytest.mark.parametrize(("strength", "switch"), [(0.8, 0.6), (0.45, 0.8)])
def test_a_refiner_ends_the_second_pass(strength: float, switch: float, model: Models, reference: References) -> None:
    highres = {"scale": 1.5, "strength": strength, "steps": 12}
    wishes = {"steps": 5, "guidance": 5.0, "negative_prompt": "the dog", "seed": 7}
    spec = spec_for(model("sdxl"), **wishes, highres=highres)
    assert isinstance(spec, TextToImage)
    expected = by_three_pipelines(spec, reference("sdxl"), reference("sdxl_refiner"), switch)
    assert psnr(refined(spec, model("sdxl"), model("sdxl_refiner"), switch), expected) >= MIN_PSNR
    assert psnr(draw(spec, model("sdxl")), expected) < 50


@pytest.mark.parametrize(
    "wish", [{"strength": 1.0}, {"strength": 0.75}, {"strength": 1.0, "only_masked": True, "padding": 8}]
)
def test_a_refiner_goes_on_inside_the_mask(wish: dict[str, Any], model: Models, reference: References) -> None:
    size = {"width": SIDE, "height": SIDE, "mask_blur": 0}
    wishes = {"sampler": "DDIM", "steps": 10, "guidance": 5.0, "negative_prompt": "the dog", "seed": 7}
    spec = spec_for(model("sdxl"), **wishes, **size, init=INIT, mask=MASK, **wish)
    assert isinstance(spec, Inpaint)
    expected = by_two_masked_pipelines(spec, reference("sdxl"), reference("sdxl_refiner"), 0.6)
    assert psnr(refined(spec, model("sdxl"), model("sdxl_refiner"), 0.6), expected) >= MIN_PSNR
    assert psnr(draw(spec, model("sdxl"), PICTURES), expected) < 50


PROMPT = "a [cat:dog:0.5] in the [red|blue] hat"
OVER: dict[str, Any] = {"init": INIT, "strength": 0.9, "width": SIDE, "height": SIDE}


@pytest.mark.parametrize(
    ("kind", "wish"),
    [
        ("sd1", {}),
        ("sd1", {"prompt": "a [cat:dog:1.5] in the [red|blue] hat", "highres": {"scale": 1.5, "steps": 6}}),
        ("sd1", {"guidance_interval": {"start": 0.3, "end": 0.8}, "highres": {"scale": 1.5, "upscaler": "latent"}}),
        ("sd1", OVER),
        ("sd1", OVER | {"width": 96, "tiles": {"side": 64, "overlap": 16}}),
        ("sd1", OVER | {"mask": MASK}),
        ("sd1", OVER | {"mask": MASK, "only_masked": True, "padding": 8}),
        ("inpaint", OVER | {"mask": MASK}),
    ],
)
def test_a_model_that_takes_over_from_itself_changes_nothing(kind: str, wish: dict[str, Any], model: Models) -> None:
    ours = model(kind)
    spec = spec_for(ours, **{"prompt": PROMPT, "sampler": "DDIM", "steps": 7, "seed": 3} | wish)
    alone = draw(spec, ours, PICTURES)
    for switch in (0.2, 0.5, 0.95):
        assert psnr(refined(spec, ours, ours, switch), alone) >= MIN_PSNR


@pytest.mark.parametrize(("first", "second"), [("sd1", "inpaint"), ("inpaint", "sd1")])
def test_each_of_two_models_inpaints_in_its_own_way(first: str, second: str, model: Models) -> None:
    spec = spec_for(model(first), **OVER, mask=MASK, mask_blur=0, sampler="DDIM", steps=6)
    both = refined(spec, model(first), model(second), 0.5)
    for alone in (first, second):
        assert psnr(both, draw(spec, model(alone), PICTURES)) < 50
    difference = np.abs(np.asarray(both, np.int16) - np.asarray(PICTURES[INIT], np.int16)).max(axis=2)
    assert not difference[np.asarray(PICTURES[MASK]) == 0].any(), "what is not masked is kept to the pixel"
    assert difference[np.asarray(PICTURES[MASK]) > 0].any()


def test_the_refiner_draws_over_pictures_by_itself(model: Models, reference: References) -> None:
    ours, theirs = model("sdxl_refiner"), reference("sdxl_refiner")
    wishes = {"init": INIT, "strength": 0.5, "width": SIDE, "height": SIDE, "steps": 6, "guidance": 5.0}
    spec = spec_for(ours, negative_prompt="the dog", **wishes)
    expected = theirs.draw(spec, PICTURES)
    assert psnr(draw(spec, ours, PICTURES), expected) >= MIN_PSNR


def test_jobs_meet_in_the_calls_of_both_models(model: Models) -> None:
    base, refiner = model("sdxl"), model("sdxl_refiner")
    wishes: list[dict[str, Any]] = [
        {"refiner": use(refiner, 0.6)},
        {"refiner": use(refiner, 0.3), "pag_scale": 2.0},
        {"refiner": use(base, 0.6), "freeu": FreeU()},
        {"refiner": use(refiner, 0.6), "highres": HighresFix(scale=1.5)},
        {},
    ]
    specs = [spec_for(base, steps=6, seed=seed).model_copy(update=wish) for seed, wish in enumerate(wishes)]
    heirs = [refiner, refiner, base, refiner, None]
    own = spec_for(refiner, steps=6)
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec, base, refiner=heir) for spec, heir in zip(specs, heirs, strict=True)]
        other = job_service.add(own, refiner)
        job_service.finish()
        together = [job_service.image(job) for job in [*jobs, other]]
    for spec, heir, image in zip(specs, heirs, together, strict=False):
        assert psnr(image, lone(spec, base, heir)) >= MIN_PSNR
    assert psnr(together[-1], lone(own, refiner, None)) >= MIN_PSNR


def use(refiner: Model, switch: float = 0.6) -> PinnedRefiner:
    return PinnedRefiner(model=refiner.name, digest=refiner.digest, switch=switch)


def lone(spec: Denoised, base: Model, refiner: Model | None) -> Image.Image:
    with SteppedEngine() as job_service:
        job = job_service.add(spec, base, refiner=refiner)
        job_service.finish()
        return job_service.image(job)


def test_the_autoencoder_that_was_chosen_decodes(model: Models) -> None:
    refiner = model("sdxl_refiner")
    other = replace(model("sdxl"), vae=model("sd1").vae, vae_digest="other")
    spec = spec_for(other, steps=4).model_copy(update={"refiner": use(refiner)})
    with SteppedEngine() as job_service:
        job = job_service.add(spec, other, refiner=refiner)
        job_service.finish()
        assert job.model.vae is other.vae
        assert job.model.vae_digest == "other"


def test_a_refiner_keeps_nothing_of_a_base_that_has_left(checkpoint: Callable[[str], Any]) -> None:
    """What runs its network is made once, for the first job, and stays: it must not hold that job's autoencoder."""
    base, refiner = load(checkpoint("sdxl")), load(checkpoint("sdxl_refiner"))
    autoencoder = weakref.ref(base.vae.network)
    spec = spec_for(base, steps=3).model_copy(update={"refiner": use(refiner)})
    with SteppedEngine() as job_service:
        job = job_service.add(spec, base, refiner=refiner)
        job_service.finish()
        assert job_service.image(job)
        job_service.jobs.clear()
        del base, job
        gc.collect()
        assert autoencoder() is None


def test_the_steps_are_the_bases_whatever_the_refiner_predicts(model: Models) -> None:
    """Of a refiner whose configuration spaces its timesteps otherwise, none is left out or taken twice."""
    base = model("sd1")
    trailing = with_scheduler(base, {**base.description.scheduler, "timestep_spacing": "trailing"})
    spec = spec_for(base, steps=6, sampler="DDIM").model_copy(update={"refiner": use(base)})
    assert psnr(lone(spec, base, trailing), lone(spec, base, base)) >= MIN_PSNR
    predicts_v = with_scheduler(base, {**base.description.scheduler, "prediction_type": "v_prediction"})
    assert psnr(lone(spec, base, predicts_v), lone(spec, base, base)) < 50


@pytest.mark.parametrize("wish", [{"steps": 1}, {"steps": 5, "highres": {"steps": 3, "strength": 0.4}}])
def test_one_step_is_too_few_for_two_models(wish: dict[str, Any], model: Models) -> None:
    base = model("sd1")
    with SteppedEngine() as job_service:
        job = job_service.add(spec_for(base, **wish).model_copy(update={"refiner": use(base)}), base, refiner=base)
        job_service.finish()
        last = job_service.last(job)
        assert not job_service.events_of(job, Started), "it is said before the first pass"
    assert isinstance(last, Failed)
    assert "a step each" in str(last.error)


@pytest.mark.parametrize(
    ("first", "second"), [("sd1", "sdxl"), ("sd1", "flux"), ("sd1", "inpaint"), ("sd2", "zero_snr")]
)
def test_a_model_that_cannot_take_over_is_refused(first: str, second: str, checkpoint: Callable[[str], Any]) -> None:
    about = [describe(checkpoint(kind)) for kind in (first, second)]
    with pytest.raises(UnsupportedOption, match="refiner"):
        require_successor(*about, names=("one", "other"), masked=False)


def test_models_for_inpainting_hand_over_where_there_is_a_mask(checkpoint: Callable[[str], Any]) -> None:
    plain, masks = describe(checkpoint("sd1")), describe(checkpoint("inpaint"))
    for first, second in ((plain, masks), (masks, plain), (masks, masks)):
        require_successor(first, second, names=("one", "other"), masked=True)
        with pytest.raises(UnsupportedOption, match="made for inpainting"):
            require_successor(first, second, names=("one", "other"), masked=False)
