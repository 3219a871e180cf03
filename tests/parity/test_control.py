"""Our pictures with ControlNets, T2I-Adapters and IP-Adapters against those of diffusers with the same files."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.control_files import (
    HINT,
    LOOK,
    OTHER_HINT,
    PICTURES,
    control,
    controlled,
    controlnet,
    picture_led,
    shelf_in,
    t2i_adapter,
    union,
    write_control_lora,
    write_diffusers,
    write_encoder,
    write_folder,
    write_ip_adapter,
    write_ldm,
    write_tencent,
)
from tests.diffusion.checkpoints import diffusers_scheduler
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.parity.pipelines import Reference, usable
from tests.parity.test_pipelines import MIN_PSNR
from tests.tiny_models import INIT, MASK, SIDE, box_mask, load, start_picture, write_sd1

from safelight.diffusion.samplers import find_sampler
from safelight.models.adapters.control_cache import ActiveControls
from safelight.models.networks.load import Model
from safelight.spec import Denoised
from safelight.spec.effects import HINT_KINDS

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

Models = Callable[[str], Model]
Checkpoints = Callable[[str], Path]
References = Callable[[str], Reference]
USUAL: dict[str, Any] = {"sampler": "Euler", "steps": 5, "guidance": 4.0, "guidance_rescale": 0.0, "seed": 7}
EVERY = {**PICTURES, INIT: start_picture(), MASK: box_mask((16, 8, 48, 40))}
SIZED = {"width": SIDE, "height": SIDE}


def ours(model: Model, led: ActiveControls, **wishes: Any) -> tuple[Denoised, Image.Image]:
    spec = controlled(spec_for(model, **(USUAL | wishes)), led)
    with SteppedEngine() as job_service:
        job = job_service.add(spec, model, EVERY, led=led)
        job_service.finish()
        return spec, job_service.image(job)


def theirs(reference: Reference, pipeline: str, spec: Denoised, parts: dict[str, Any], **call: Any) -> Image.Image:
    import diffusers

    family = "StableDiffusionXL" if reference.description.family.name == "sdxl" else "StableDiffusion"
    pipeline_class = getattr(diffusers, family + pipeline)
    with warnings.catch_warnings(action="ignore"):
        scheduler = usable(diffusers_scheduler(find_sampler(spec.sampler), dict(reference.description.scheduler)))
        made: Any = pipeline_class(**(reference.components_for(pipeline_class, scheduler) | parts))
        made.set_progress_bar_config(disable=True)
        import torch

        with torch.no_grad():
            return made(
                prompt=spec.prompt,
                negative_prompt=spec.negative_prompt or None,
                num_inference_steps=spec.steps,
                guidance_scale=spec.guidance,
                generator=torch.Generator("cpu").manual_seed(spec.seed),
                **call,
            ).images[0]


WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "folder": lambda path, net: write_folder(path, net),
    "diffusers": lambda path, net: write_diffusers(path.with_suffix(".safetensors"), net),
    "ldm": lambda path, net: write_ldm(path.with_suffix(".safetensors"), net),
    "ldm without prefix": lambda path, net: write_ldm(path.with_suffix(".safetensors"), net, prefix=""),
}


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_controlnet_draws_what_diffusers_draws_with_it(
    kind: str, dialect: str, model: Models, reference: References, tmp_path: Path
) -> None:
    net = controlnet(model(kind))
    one = control(WRITERS[dialect](tmp_path / "net", net), model(kind), weight=0.8)
    spec, picture = ours(model(kind), ActiveControls(controls=(one,)))
    expected = theirs(
        reference(kind), "ControlNetPipeline", spec, {"controlnet": net},
        image=PICTURES[HINT], controlnet_conditioning_scale=0.8,
    )  # fmt: skip
    assert psnr(picture, expected) >= MIN_PSNR
    assert psnr(picture, draw(spec_for(model(kind), **USUAL), model(kind))) < 30, (
        "a net that does nothing shows nothing"
    )


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_control_lora_is_the_controlnet_that_it_was_cut_out_of(
    kind: str, model: Models, reference: References, tmp_path: Path
) -> None:
    net = controlnet(model(kind))
    path = write_control_lora(tmp_path / "canny.safetensors", net, model(kind))
    spec, picture = ours(model(kind), ActiveControls(controls=(control(path, model(kind)),)))
    expected = theirs(reference(kind), "ControlNetPipeline", spec, {"controlnet": net}, image=PICTURES[HINT])
    assert psnr(picture, expected) >= MIN_PSNR
    assert path.stat().st_size < write_ldm(tmp_path / "whole.safetensors", net).stat().st_size


@pytest.mark.parametrize("kinds", [6, 8], ids=["six kinds", "eight kinds"])
@pytest.mark.parametrize("dialect", ["folder", "diffusers"])
def test_a_controlnet_union_draws_what_diffusers_draws_with_it(
    dialect: str, kinds: int, model: Models, reference: References, tmp_path: Path
) -> None:
    net = union(model("sdxl"), kinds=kinds)
    path = WRITERS[dialect](tmp_path / "net", net)
    made = {}
    for kind in ("hard-edge", "depth"):
        one = control(path, model("sdxl"), weight=0.8, hint_kind=kind)
        spec, made[kind] = ours(model("sdxl"), ActiveControls(controls=(one,)))
        expected = theirs(
            reference("sdxl"), "ControlNetUnionPipeline", spec, {"controlnet": net},
            control_image=[PICTURES[HINT]], control_mode=[HINT_KINDS.index(kind)], controlnet_conditioning_scale=0.8,
        )  # fmt: skip
        assert psnr(made[kind], expected) >= MIN_PSNR
    assert psnr(made["hard-edge"], made["depth"]) < 50, "a kind that does nothing shows nothing"


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_several_with_weights_and_spans(kind: str, model: Models, reference: References, tmp_path: Path) -> None:
    nets = [controlnet(model(kind), seed=seed) for seed in (1, 2)]
    paths = [write_folder(tmp_path / str(number), net) for number, net in enumerate(nets)]
    uses = [
        {"weight": 0.7, "end": 0.6},
        {"weight": 1.2, "start": 0.2, "image": OTHER_HINT, "hint": OTHER_HINT},
    ]
    controls = tuple(control(path, model(kind), **use) for path, use in zip(paths, uses, strict=True))
    spec, picture = ours(model(kind), ActiveControls(controls=controls))
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

    expected = theirs(
        reference(kind), "ControlNetPipeline", spec, {"controlnet": MultiControlNetModel(nets)},
        image=[PICTURES[HINT], PICTURES[OTHER_HINT]],
        controlnet_conditioning_scale=[0.7, 1.2],
        control_guidance_start=[0.0, 0.2],
        control_guidance_end=[0.6, 1.0],
    )  # fmt: skip
    assert psnr(picture, expected) >= MIN_PSNR


@pytest.mark.parametrize("config", [{}, {"global_pool_conditions": True}], ids=["guess mode", "pooled"])
def test_the_mode_that_listens_to_control_is_guess_mode(
    config: dict[str, Any], model: Models, reference: References, tmp_path: Path
) -> None:
    net = controlnet(model("sd1"), **config)
    one = control(write_folder(tmp_path / "net", net), model("sd1"), mode="balanced" if config else "control")
    spec, picture = ours(model("sd1"), ActiveControls(controls=(one,)))
    expected = theirs(
        reference("sd1"), "ControlNetPipeline", spec, {"controlnet": net}, image=PICTURES[HINT], guess_mode=not config
    )
    assert psnr(picture, expected) >= MIN_PSNR
    balanced = control(write_folder(tmp_path / "plain", controlnet(model("sd1"))), model("sd1"))
    assert psnr(picture, ours(model("sd1"), ActiveControls(controls=(balanced,)))[1]) < 40


def test_a_net_that_was_trained_on_blue_green_red(model: Models, reference: References, tmp_path: Path) -> None:
    net = controlnet(model("sd1"), controlnet_conditioning_channel_order="bgr")
    one = control(write_folder(tmp_path / "net", net), model("sd1"), image=LOOK, hint=LOOK, fit="stretch")
    spec, picture = ours(model("sd1"), ActiveControls(controls=(one,)))
    hint = PICTURES[LOOK].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    expected = theirs(reference("sd1"), "ControlNetPipeline", spec, {"controlnet": net}, image=hint)
    assert psnr(picture, expected) >= MIN_PSNR


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_image_to_image_with_control(kind: str, model: Models, reference: References, tmp_path: Path) -> None:
    net = controlnet(model(kind))
    one = control(write_folder(tmp_path / "net", net), model(kind), end=0.5)
    wishes = {"init": INIT, "strength": 0.8, **SIZED}
    spec, picture = ours(model(kind), ActiveControls(controls=(one,)), **wishes)
    expected = theirs(
        reference(kind), "ControlNetImg2ImgPipeline", spec, {"controlnet": net},
        image=EVERY[INIT], control_image=PICTURES[HINT], strength=0.8,
        control_guidance_end=0.5, controlnet_conditioning_scale=1.0, **SIZED,
    )  # fmt: skip
    assert psnr(picture, expected) >= MIN_PSNR


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("kind", ["sd1", "inpaint"])
def test_inpainting_with_control(
    kind: str, only_masked: bool, model: Models, reference: References, tmp_path: Path
) -> None:
    """A network that also takes the mask is led by the nets of one that does not."""
    net = controlnet(model("sd1"))
    one = control(write_folder(tmp_path / "net", net), model(kind), fit="stretch")
    wishes = {"init": INIT, "mask": MASK, "mask_blur": 0.0, "strength": 0.8, "only_masked": only_masked, "padding": 4}
    spec, picture = ours(model(kind), ActiveControls(controls=(one,)), **wishes, **SIZED)
    expected = theirs(
        reference(kind), "ControlNetInpaintPipeline", spec, {"controlnet": net},
        image=EVERY[INIT], mask_image=EVERY[MASK], control_image=PICTURES[HINT], strength=0.8,
        controlnet_conditioning_scale=1.0, padding_mask_crop=4 if only_masked else None, **SIZED,
    )  # fmt: skip
    if not only_masked:
        expected = Image.composite(expected, EVERY[INIT], EVERY[MASK])
    assert psnr(picture, expected) >= MIN_PSNR


T2I: dict[str, Callable[[Path, Any], Path]] = {
    "folder": WRITERS["folder"],
    "diffusers": WRITERS["diffusers"],
    "tencent": lambda path, net: write_tencent(path.with_suffix(".safetensors"), net),
}


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Stable Diffusion 1's, the first block has attention, and takes what an adapter adds before it shrinks."""
    kinds = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    return write_sd1(tmp_path_factory.mktemp("attentive"), **kinds)


@pytest.mark.parametrize("dialect", T2I)
@pytest.mark.parametrize(("kind", "adapter"), [("sd1", None), ("sd1", "light_adapter"), ("sdxl", None)])
def test_a_t2i_adapter_draws_what_diffusers_draws_with_it(
    kind: str, adapter: str | None, dialect: str, checkpoint: Checkpoints, attentive: Path, tmp_path: Path
) -> None:
    folder = checkpoint(kind) if kind == "sdxl" else attentive
    model = load(folder)
    net = t2i_adapter(model, kind=adapter)
    one = control(T2I[dialect](tmp_path / "net", net), model, weight=1.6)
    spec, picture = ours(model, ActiveControls(controls=(one,)))
    expected = theirs(
        Reference(folder), "AdapterPipeline", spec, {"adapter": net},
        image=PICTURES[HINT], adapter_conditioning_scale=1.6, **SIZED,
    )  # fmt: skip
    assert psnr(picture, expected) >= MIN_PSNR
    assert psnr(picture, draw(spec_for(model, **USUAL), model)) < 40


def test_a_t2i_adapter_of_grey_hints(attentive: Path, tmp_path: Path) -> None:
    model = load(attentive)
    net = t2i_adapter(model, channels=1)
    one = control(write_tencent(tmp_path / "net.safetensors", net), model)
    spec, picture = ours(model, ActiveControls(controls=(one,)))
    hint = PICTURES[HINT].convert("L")
    expected = theirs(Reference(attentive), "AdapterPipeline", spec, {"adapter": net}, image=hint, **SIZED)
    assert psnr(picture, expected) >= MIN_PSNR


@pytest.mark.parametrize("projection", ["base", "plus", "full"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_an_ip_adapter_draws_what_diffusers_draws_with_it(
    kind: str, projection: str, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    encoder = write_encoder(tmp_path / "ip-adapters" / "image_encoder")
    path = write_ip_adapter(tmp_path / "ip-adapters" / "ip.safetensors", model(kind), kind=projection, encoder=encoder)
    led = picture_led(shelf_in(tmp_path), model(kind), "ip", weight=0.7)
    spec, picture = ours(model(kind), led)

    import diffusers
    import torch

    reference = Reference(checkpoint(kind))
    pipeline_class = getattr(diffusers, f"StableDiffusion{'XL' if kind == 'sdxl' else ''}Pipeline")
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        scheduler = diffusers_scheduler(find_sampler(spec.sampler), dict(reference.description.scheduler))
        made: Any = pipeline_class(**reference.components_for(pipeline_class, scheduler))
        made.set_progress_bar_config(disable=True)
        made.load_ip_adapter(path.parent, subfolder="", weight_name=path.name)
        made.set_ip_adapter_scale(0.7)
        expected = made(
            prompt=spec.prompt,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance,
            generator=torch.Generator("cpu").manual_seed(spec.seed),
            ip_adapter_image=PICTURES[LOOK],
            **SIZED,
        ).images[0]
    assert psnr(picture, expected) >= MIN_PSNR
    assert psnr(picture, draw(spec_for(model(kind), **USUAL), model(kind))) < 30
