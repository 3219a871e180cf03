"""FreeU and perturbed-attention guidance against diffusers, and rows of one call that differ in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image
from tests.fakes import Desk, draw, psnr, spec_for
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import LEAST_PSNR

from safelight.diffusion.samplers import find_sampler
from safelight.errors import UnsupportedOption
from safelight.events import Failed
from safelight.models.load import Model
from safelight.spec import FreeU, TextToImage

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

Models = Callable[[str], Model]
References = Callable[[str], Reference]
FREEU = FreeU(b1=1.4, b2=1.6, s1=0.9, s2=0.2)


@contextmanager
def free(theirs: Reference) -> Iterator[None]:
    unet: Any = theirs.components["unet"]
    unet.enable_freeu(**FREEU.model_dump())
    try:
        yield
    finally:
        unet.disable_freeu()


def perturbed(theirs: Reference, spec: TextToImage) -> Image.Image:
    """By diffusers' pipeline for it, which puts attention processors of its own into the network for good."""
    import diffusers
    from tests.diffusion.checkpoints import diffusers_scheduler

    xl = theirs.description.family.name == "sdxl"
    kind: Any = diffusers.StableDiffusionXLPAGPipeline if xl else diffusers.StableDiffusionPAGPipeline
    scheduler = diffusers_scheduler(find_sampler(spec.sampler), dict(theirs.description.scheduler))
    unet: Any = theirs.components["unet"]
    processors = dict(unet.attn_processors)
    pipeline = kind(**theirs.components_for(kind, scheduler), pag_applied_layers=["mid"])
    pipeline.set_progress_bar_config(disable=True)
    try:
        with torch.no_grad():
            return pipeline(
                prompt=spec.prompt,
                negative_prompt=spec.negative_prompt or None,
                num_inference_steps=spec.steps,
                guidance_scale=spec.guidance,
                pag_scale=spec.pag_scale,
                guidance_rescale=spec.guidance_rescale,
                width=spec.width,
                height=spec.height,
                generator=torch.Generator("cpu").manual_seed(spec.seed),
            ).images[0]
    finally:
        unet.set_attn_processor(processors)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64)])
def test_freeu(kind: str, width: int, height: int, model: Models, reference: References) -> None:
    spec = spec_for(model(kind), steps=3, width=width, height=height, freeu=FREEU)
    with free(reference(kind)):
        theirs = reference(kind).draw(spec)
    assert psnr(draw(spec, model(kind)), theirs) >= LEAST_PSNR
    assert psnr(draw(spec.model_copy(update={"freeu": None}), model(kind)), theirs) < 50


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize(("guidance", "rescale"), [(5.0, 0.0), (5.0, 0.7), (1.0, 0.0)])
def test_perturbed_attention(kind: str, guidance: float, rescale: float, model: Models, reference: References) -> None:
    spec = spec_for(model(kind), steps=3, guidance=guidance, guidance_rescale=rescale, pag_scale=3.0)
    assert isinstance(spec, TextToImage)
    theirs = perturbed(reference(kind), spec)
    assert psnr(draw(spec, model(kind)), theirs) >= LEAST_PSNR
    assert psnr(draw(spec.model_copy(update={"pag_scale": 0.0}), model(kind)), theirs) < 50


def test_rows_of_one_call_each_get_their_own(model: Models) -> None:
    network = model("sd1")
    wishes: list[dict[str, Any]] = [
        {},
        {"freeu": FREEU},
        {"freeu": FreeU(b1=1.1, b2=1.2, s1=0.5, s2=0.5)},
        {"pag_scale": 2.0},
        {"pag_scale": 4.0, "guidance": 1.0},
        {"freeu": FREEU, "pag_scale": 3.0, "guidance_rescale": 0.5},
    ]
    specs = [spec_for(network, steps=3, seed=seed, **wish) for seed, wish in enumerate(wishes)]
    with Desk() as desk:
        jobs = [desk.add(spec, network) for spec in specs]
        desk.finish()
        together = [desk.image(job) for job in jobs]
    for spec, image in zip(specs, together, strict=True):
        assert psnr(image, draw(spec, network)) >= LEAST_PSNR


@pytest.mark.parametrize(
    ("kind", "wish", "why"),
    [
        ("flux", {"freeu": FREEU}, "UNet"),
        ("flux", {"pag_scale": 3.0}, "UNet"),
        ("sd1", {"prompt": "a cat AND a dog", "pag_scale": 3.0}, "AND"),
    ],
)
def test_what_a_network_has_no_place_for_is_refused(kind: str, wish: dict[str, Any], why: str, model: Models) -> None:
    with Desk() as desk:
        job = desk.add(spec_for(model(kind), **wish), model(kind))
        desk.finish()
        last = desk.last(job)
    assert isinstance(last, Failed)
    assert isinstance(last.error, UnsupportedOption)
    assert why in str(last.error)
