"""SDXL's refiner against diffusers' "ensemble of expert denoisers": one pipeline until the switch, another after it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from tests.diffusion.checkpoints import diffusers_scheduler
from tests.fakes import Desk, psnr, spec_for, with_scheduler
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import LEAST_PSNR, is_telling

from safelight.diffusion.samplers import find_sampler
from safelight.errors import UnsupportedOption
from safelight.events import Failed, Started, Stepped
from safelight.models.families import describe, require_successor
from safelight.models.load import Model
from safelight.spec import Denoised, FreeU, RefinerUse, TextToImage

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

Models = Callable[[str], Model]
References = Callable[[str], Reference]


def refined(spec: TextToImage, base: Model, refiner: Model, switch: float = 0.8) -> Image.Image:
    with Desk() as desk:
        use = RefinerUse(model="refiner", digest=refiner.digest, switch=switch)
        job = desk.add(spec.model_copy(update={"refiner": use}), base, refiner=refiner)
        desk.finish()
        steps = [event.step for event in desk.heard(job, Stepped)]
        assert steps == list(range(1, desk.heard(job, Started)[0].total_steps + 1))
        return desk.image(job)


def by_two_pipelines(spec: TextToImage, base: Reference, refiner: Reference, switch: float) -> Image.Image:
    import diffusers

    def pipeline(kind: Any, reference: Reference) -> Any:
        scheduler = diffusers_scheduler(find_sampler(spec.sampler), dict(reference.description.scheduler))
        made = kind(**reference.components_for(kind, scheduler))
        made.set_progress_bar_config(disable=True)
        return made

    call: dict[str, Any] = {
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt or None,
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "generator": torch.Generator("cpu").manual_seed(spec.seed),
    }
    size = {"width": spec.width, "height": spec.height}
    first = pipeline(diffusers.StableDiffusionXLPipeline, base)
    second = pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, refiner)
    with torch.no_grad():
        latents = first(**call, **size, denoising_end=switch, output_type="latent").images
        return second(**call, image=latents, denoising_start=switch).images[0]


@pytest.mark.parametrize(("sampler", "switch"), [("Euler", 0.8), ("Euler", 0.55), ("DDIM", 0.5), ("DPM++ 2M", 0.6)])
def test_a_refiner_goes_on_where_the_base_left_off(
    sampler: str, switch: float, model: Models, reference: References
) -> None:
    spec = spec_for(model("sdxl"), sampler=sampler, steps=10, guidance=5.0, negative_prompt="the dog", seed=7)
    assert isinstance(spec, TextToImage)
    expected = by_two_pipelines(spec, reference("sdxl"), reference("sdxl_refiner"), switch)
    assert is_telling(expected)
    assert psnr(refined(spec, model("sdxl"), model("sdxl_refiner"), switch), expected) >= LEAST_PSNR


def test_a_model_that_takes_over_from_itself_changes_nothing(model: Models) -> None:
    spec = spec_for(model("sd1"), prompt="a [cat:dog:0.5] in the [red|blue] hat", sampler="DDIM", steps=7, seed=3)
    assert isinstance(spec, TextToImage)
    with Desk() as desk:
        job = desk.add(spec, model("sd1"))
        desk.finish()
        alone = desk.image(job)
    for switch in (0.2, 0.5, 0.95):
        assert psnr(refined(spec, model("sd1"), model("sd1"), switch), alone) >= LEAST_PSNR


def test_the_refiner_draws_over_pictures_by_itself(model: Models, reference: References) -> None:
    from tests.fakes import draw
    from tests.parity.test_pipelines import PICTURES
    from tests.tiny_models import INIT, SIDE

    ours, theirs = model("sdxl_refiner"), reference("sdxl_refiner")
    wishes = {"init": INIT, "strength": 0.5, "width": SIDE, "height": SIDE, "steps": 6, "guidance": 5.0}
    spec = spec_for(ours, negative_prompt="the dog", **wishes)
    expected = theirs.draw(spec, PICTURES)
    assert psnr(draw(spec, ours, PICTURES), expected) >= LEAST_PSNR


def test_jobs_meet_in_the_calls_of_both_models(model: Models) -> None:
    base, refiner = model("sdxl"), model("sdxl_refiner")
    wishes: list[dict[str, Any]] = [
        {"refiner": use(refiner, 0.6)},
        {"refiner": use(refiner, 0.3), "pag_scale": 2.0},
        {"refiner": use(base, 0.6), "freeu": FreeU()},
        {},
    ]
    specs = [spec_for(base, steps=6, seed=seed).model_copy(update=wish) for seed, wish in enumerate(wishes)]
    heirs = [refiner, refiner, base, None]
    own = spec_for(refiner, steps=6)
    with Desk() as desk:
        jobs = [desk.add(spec, base, refiner=heir) for spec, heir in zip(specs, heirs, strict=True)]
        other = desk.add(own, refiner)
        desk.finish()
        together = [desk.image(job) for job in [*jobs, other]]
    for spec, heir, image in zip(specs, heirs, together, strict=False):
        assert psnr(image, lone(spec, base, heir)) >= LEAST_PSNR
    assert psnr(together[-1], lone(own, refiner, None)) >= LEAST_PSNR


def use(refiner: Model, switch: float = 0.6) -> RefinerUse:
    return RefinerUse(model=refiner.name, digest=refiner.digest, switch=switch)


def lone(spec: Denoised, base: Model, refiner: Model | None) -> Image.Image:
    with Desk() as desk:
        job = desk.add(spec, base, refiner=refiner)
        desk.finish()
        return desk.image(job)


def test_the_autoencoder_that_was_chosen_decodes(model: Models) -> None:
    refiner = model("sdxl_refiner")
    other = replace(model("sdxl"), vae=model("sd1").vae, vae_digest="other")
    spec = spec_for(other, steps=4).model_copy(update={"refiner": use(refiner)})
    with Desk() as desk:
        job = desk.add(spec, other, refiner=refiner)
        desk.finish()
        assert job.model.vae is other.vae
        assert job.model.vae_digest == "other"


def test_the_steps_are_the_bases_whatever_the_refiner_predicts(model: Models) -> None:
    """Of a refiner whose configuration spaces its timesteps otherwise, none is left out or taken twice."""
    base = model("sd1")
    trailing = with_scheduler(base, {**base.description.scheduler, "timestep_spacing": "trailing"})
    spec = spec_for(base, steps=6, sampler="DDIM").model_copy(update={"refiner": use(base)})
    assert psnr(lone(spec, base, trailing), lone(spec, base, base)) >= LEAST_PSNR
    predicts_v = with_scheduler(base, {**base.description.scheduler, "prediction_type": "v_prediction"})
    assert psnr(lone(spec, base, predicts_v), lone(spec, base, base)) < 50


def test_one_step_is_too_few_for_two_models(model: Models) -> None:
    base = model("sd1")
    with Desk() as desk:
        job = desk.add(spec_for(base, steps=1).model_copy(update={"refiner": use(base)}), base, refiner=base)
        desk.finish()
        last = desk.last(job)
    assert isinstance(last, Failed)
    assert "two steps" in str(last.error)


@pytest.mark.parametrize(
    ("first", "second"), [("sd1", "sdxl"), ("sd1", "flux"), ("sd1", "inpaint"), ("sd2", "zero_snr")]
)
def test_a_model_that_cannot_take_over_is_refused(first: str, second: str, checkpoint: Callable[[str], Any]) -> None:
    about = [describe(checkpoint(kind)) for kind in (first, second)]
    with pytest.raises(UnsupportedOption, match="refiner"):
        require_successor(*about, names=("one", "other"))
