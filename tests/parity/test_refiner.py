"""SDXL's refiner against diffusers' "ensemble of expert denoisers": one pipeline until the switch, another after it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from tests.diffusion.checkpoints import diffusers_scheduler
from tests.fakes import Desk, psnr, spec_for
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import LEAST_PSNR, is_telling

from safelight.diffusion.samplers import find_sampler
from safelight.errors import UnsupportedOption
from safelight.events import Started, Stepped
from safelight.models.families import describe, require_successor
from safelight.models.load import Model
from safelight.spec import RefinerUse, TextToImage

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


@pytest.mark.parametrize(("first", "second"), [("sd1", "sdxl"), ("sd1", "flux"), ("sd1", "inpaint")])
def test_a_model_that_cannot_take_over_is_refused(first: str, second: str, checkpoint: Callable[[str], Any]) -> None:
    about = [describe(checkpoint(kind)) for kind in (first, second)]
    with pytest.raises(UnsupportedOption, match="refiner"):
        require_successor(*about, names=("one", "other"))
