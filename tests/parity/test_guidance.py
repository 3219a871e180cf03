"""FreeU, perturbed-attention and self-attention guidance against diffusers, and rows of one call that differ in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.fakes import SteppedEngine, draw, psnr, spec_for, with_scheduler
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import MIN_PSNR
from tests.tiny_models import load, write_sd1

from safelight.diffusion.samplers import find_sampler
from safelight.errors import UnsupportedOption
from safelight.events import Failed, Stepped
from safelight.models.networks.load import Model
from safelight.spec import Denoised, FreeU, TextToImage

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
    pipeline = kind(**theirs.components_for(kind, scheduler), pag_applied_layers=[*spec.pag_layers])
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


def self_attended(theirs: Reference, spec: TextToImage) -> Image.Image:
    """By diffusers' pipeline for it, which cannot do without every step's timestep being a whole number."""
    import diffusers
    from tests.diffusion.checkpoints import diffusers_scheduler

    kind: Any = diffusers.StableDiffusionSAGPipeline
    scheduler = diffusers_scheduler(find_sampler(spec.sampler), dict(theirs.description.scheduler))
    pipeline = kind(**theirs.components_for(kind, scheduler))
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipeline(
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt or None,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance,
            sag_scale=spec.sag_scale,
            width=spec.width,
            height=spec.height,
            generator=torch.Generator("cpu").manual_seed(spec.seed),
        ).images[0]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64)])
def test_freeu(kind: str, width: int, height: int, model: Models, reference: References) -> None:
    spec = spec_for(model(kind), steps=3, width=width, height=height, freeu=FREEU)
    with free(reference(kind)):
        theirs = reference(kind).draw(spec)
    assert psnr(draw(spec, model(kind)), theirs) >= MIN_PSNR
    assert psnr(draw(spec.model_copy(update={"freeu": None}), model(kind)), theirs) < 50


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize(("guidance", "rescale"), [(5.0, 0.0), (5.0, 0.7), (1.0, 0.0)])
def test_perturbed_attention(kind: str, guidance: float, rescale: float, model: Models, reference: References) -> None:
    spec = spec_for(model(kind), steps=3, guidance=guidance, guidance_rescale=rescale, pag_scale=3.0)
    assert isinstance(spec, TextToImage)
    theirs = perturbed(reference(kind), spec)
    assert psnr(draw(spec, model(kind)), theirs) >= MIN_PSNR
    assert psnr(draw(spec.model_copy(update={"pag_scale": 0.0}), model(kind)), theirs) < 50


@pytest.mark.parametrize("layers", [("down",), ("mid", "up_blocks.0.attentions.1"), ("down_blocks.1", "up")])
def test_perturbed_attention_in_other_layers(layers: tuple[str, ...], model: Models, reference: References) -> None:
    spec = spec_for(model("sdxl"), steps=3, guidance=5.0, pag_scale=3.0, pag_layers=layers)
    assert isinstance(spec, TextToImage)
    theirs = perturbed(reference("sdxl"), spec)
    assert psnr(draw(spec, model("sdxl")), theirs) >= MIN_PSNR
    assert psnr(draw(spec.model_copy(update={"pag_layers": ("mid",)}), model("sdxl")), theirs) < 50


@pytest.mark.parametrize(
    ("kind", "sampler", "guidance"),
    [
        ("sd1", "DDIM", 5.0),
        ("sd1", "DDIM", 1.0),
        ("sd1", "DPM++ 2M", 5.0),
        ("sd1", "PLMS", 5.0),
        ("sd2", "DDIM", 5.0),  # predicts v
        ("sd2", "UniPC", 1.0),
    ],
)
@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 72)])
def test_self_attention_guidance(
    kind: str, sampler: str, guidance: float, width: int, height: int, model: Models, reference: References
) -> None:
    wish = {"sampler": sampler, "steps": 4, "guidance": guidance, "sag_scale": 2.0, "negative_prompt": "the dog"}
    spec = spec_for(model(kind), width=width, height=height, **wish)
    assert isinstance(spec, TextToImage)
    theirs = self_attended(reference(kind), spec)
    assert psnr(draw(spec, model(kind)), theirs) >= MIN_PSNR
    assert psnr(draw(spec.model_copy(update={"sag_scale": 0.0}), model(kind)), theirs) < 50


def test_self_attention_guidance_is_the_same_however_a_sampler_writes_its_latents(model: Models) -> None:
    """DDIM and Euler take the same steps, one with signal and noise sharing out a variance of 1, the other without."""
    alike = {"set_alpha_to_one": True, "timestep_spacing": "leading"}
    network = with_scheduler(model("sd1"), {**model("sd1").description.scheduler, **alike})
    one, other = (spec_for(network, sampler=sampler, steps=5, sag_scale=2.0) for sampler in ("DDIM", "Euler"))
    assert psnr(draw(one, network), draw(other, network)) >= MIN_PSNR


def test_a_neighbour_that_asks_twice_costs_nobody_a_bit(model: Models) -> None:
    network = model("sd1")
    pictures: list[bytes] = []
    for sag_scale in (0.0, 2.0):
        with SteppedEngine() as job_service:
            job = job_service.add(spec_for(network, steps=4), network)
            job_service.add(spec_for(network, steps=4, seed=2, sag_scale=sag_scale), network)
            job_service.finish()
            pictures.append(job_service.image(job).tobytes())
            assert [event.batch_rows for event in job_service.events_of(job, Stepped)] == [4 + (sag_scale > 0)] * 4
    assert pictures[0] == pictures[1]


def test_rows_of_one_call_each_get_their_own(model: Models) -> None:
    network = model("sd1")
    wishes: list[dict[str, Any]] = [
        {},
        {"freeu": FREEU},
        {"freeu": FreeU(b1=1.1, b2=1.2, s1=0.5, s2=0.5)},
        {"pag_scale": 2.0},
        {"pag_scale": 4.0, "guidance": 1.0},
        {"freeu": FREEU, "pag_scale": 3.0, "guidance_rescale": 0.5},
        {"pag_scale": 3.0, "pag_layers": ("up_blocks.0.attentions.1", "down")},
        {"sag_scale": 2.0},
        {"sag_scale": 1.0, "guidance": 1.0, "sampler": "Heun"},
        {"sag_scale": 1.0, "pag_scale": 1.0, "guidance_rescale": 0.5, "guidance_interval": {"start": 0.5}},
        {"sag_scale": 2.0, "prompt": "a cat AND a dog", "sampler": "Euler a"},
    ]
    specs = [spec_for(network, steps=3, seed=seed, **wish) for seed, wish in enumerate(wishes)]
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec, network) for spec in specs]
        job_service.finish()
        together = [job_service.image(job) for job in jobs]
    for spec, image in zip(specs, together, strict=True):
        assert psnr(image, draw(spec, network)) >= MIN_PSNR


@pytest.mark.parametrize(
    ("kind", "wish", "why"),
    [
        ("flux", {"freeu": FREEU}, "UNet"),
        ("flux", {"pag_scale": 3.0}, "UNet"),
        ("flux", {"sag_scale": 1.0}, "UNet"),
        ("sd1", {"prompt": "a cat AND a dog", "pag_scale": 3.0}, "AND"),
        ("sd1", {"pag_scale": 3.0, "pag_layers": ("mid", "down_blocks.0")}, "did you mean 'down_blocks.1'"),
        ("sd1", {"pag_scale": 3.0, "pag_layers": ("encoder",)}, "known: down, mid, up, down_blocks.1, up_blocks.0"),
    ],
)
def test_what_a_network_has_no_place_for_is_refused(kind: str, wish: dict[str, Any], why: str, model: Models) -> None:
    assert why in refusal(spec_for(model(kind), **wish), model(kind))


def test_a_network_with_nothing_in_the_middle_is_refused_what_happens_there(tmp_path: Path, model: Models) -> None:
    hollow, whole = load(write_sd1(tmp_path / "hollow", mid_block_type="UNetMidBlock2D")), model("sd1")
    for network, refiner in ((hollow, None), (whole, hollow)):
        assert "in the middle" in refusal(spec_for(network, sag_scale=1.0), network, refiner)
        assert "no self-attention in 'mid'" in refusal(spec_for(network, pag_scale=1.0), network, refiner)
    assert draw(spec_for(hollow, pag_scale=1.0, pag_layers=("up",)), hollow)


def refusal(spec: Denoised, model: Model, refiner: Model | None = None) -> str:
    with SteppedEngine() as job_service:
        job = job_service.add(spec, model, refiner=refiner)
        job_service.finish()
        last = job_service.last(job)
    assert isinstance(last, Failed)
    assert isinstance(last.error, UnsupportedOption)
    return str(last.error)
