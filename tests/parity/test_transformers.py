"""Stable Diffusion 3 and Flux: our pictures against the pipelines of diffusers, and in company against themselves."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import MIN_PSNR, PICTURES, TASKS, compare
from tests.tiny_models import INIT, MASK, SIDE

from safelight.models.networks.load import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

Models = Callable[[str], Model]
References = Callable[[str], Reference]
LONG = "a photo of the red apple, " * 40
"""More than CLIP reads at once, and than T5 reads at all."""


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["sd3", "sd3_without_t5", "sd3_shifting", "flux", "schnell"])
def test_every_task_is_drawn_as_diffusers_draws_it(kind: str, task: str, model: Models, reference: References) -> None:
    assert compare(model(kind), reference(kind), sampler="Default", **TASKS[task]) >= MIN_PSNR


@pytest.mark.parametrize(
    "wishes",
    [
        pytest.param({"guidance": 1.0}, id="no guidance"),
        pytest.param({"negative_prompt": "a dog, cat"}, id="negative prompt"),
        pytest.param({"prompt": ""}, id="no words"),
        pytest.param({"width": 96, "height": 64}, id="not square"),
        pytest.param({"steps": 1}, id="one step"),
        pytest.param({"clip_skip": 2, "guidance": 1.0}, id="clip skip"),
    ],
)
@pytest.mark.parametrize("kind", ["sd3", "sd3_shifting", "flux"])
def test_every_option_means_what_it_means_there(
    kind: str, wishes: dict[str, Any], model: Models, reference: References
) -> None:
    if kind == "flux" and "clip_skip" in wishes:
        pytest.skip("Flux reads no states of CLIP's")
    assert compare(model(kind), reference(kind), sampler="Default", **wishes) >= MIN_PSNR


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("task", ["image-to-image", "inpaint"])
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_step_that_strength_cuts_through_is_taken(
    kind: str, task: str, strength: float, model: Models, reference: References
) -> None:
    wishes = TASKS[task] | {"strength": strength}
    assert compare(model(kind), reference(kind), sampler="Default", **wishes) >= MIN_PSNR


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_a_network_that_takes_a_mask_inpaints_as_in_diffusers(
    strength: float, model: Models, reference: References
) -> None:
    wishes = TASKS["inpaint"] | {"strength": strength}
    assert compare(model("sd3_inpaint"), reference("sd3_inpaint"), sampler="Default", **wishes) >= MIN_PSNR


@pytest.mark.parametrize("sampler", ["Flow Heun", "Flow DPM++ 2M", "Flow UniPC"])
def test_other_samplers_walk_as_in_diffusers(sampler: str, model: Models, reference: References) -> None:
    assert compare(model("sd3"), reference("sd3"), sampler=sampler) >= MIN_PSNR


def test_the_guidance_told_to_flux_matters(model: Models) -> None:
    ours = model("flux")
    three, one = (draw(spec_for(ours, sampler="Default", guidance=guidance), ours) for guidance in (3.5, 1.0))
    assert psnr(three, one) < MIN_PSNR


COMPANY: dict[str, list[dict[str, Any]]] = {
    "sd3": [
        {"prompt": LONG, "guidance": 1.0},
        {"negative_prompt": "a dog", "steps": 5, "sampler": "Flow Heun"},
        {"prompt": "a cat AND a dog", "guidance": 3.0},
        {"prompt": "a (red:1.3) apple", "init": INIT, "strength": 0.7, "width": SIDE, "height": SIDE},
        {"prompt": "a [cat|dog]", "init": INIT, "mask": MASK, "strength": 0.7, "width": SIDE, "height": SIDE},
        {"width": 96},
    ],
    "flux": [
        {"prompt": LONG, "guidance": 3.5},
        {"prompt": "a (red:1.3) apple", "guidance": 1.0, "sampler": "Flow UniPC", "steps": 5},
        {"prompt": "a [cat|dog]", "init": INIT, "strength": 0.7, "width": SIDE, "height": SIDE},
        {"width": 96},
    ],
}


@pytest.mark.parametrize("kind", COMPANY)
def test_a_picture_in_company_is_the_picture_alone(kind: str, model: Models) -> None:
    """Unlike prompts, some of them of two chunks, which the network cannot be told in one call."""
    ours = model(kind)
    specs = [spec_for(ours, **{"sampler": "Default", "seed": seed} | wish) for seed, wish in enumerate(COMPANY[kind])]
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec, ours, PICTURES) for spec in specs]
        job_service.finish()
        together = [job_service.image(job) for job in jobs]
    for spec, picture in zip(specs, together, strict=True):
        assert psnr(picture, draw(spec, ours, PICTURES)) >= MIN_PSNR
