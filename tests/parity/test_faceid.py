"""Our pictures with FaceID adapters against those of diffusers with the same files and embeddings."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.control_files import LOOK, PICTURES, adapters_in, controlled, picture_led, write_encoder
from tests.diffusion.checkpoints import diffusers_scheduler
from tests.face_files import face, write_faceid
from tests.fakes import Steering, SteppedEngine, draw, psnr, spec_for
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import MIN_PSNR
from tests.tiny_models import SIDE

from safelight.diffusion.samplers import find_sampler
from safelight.models.networks.load import Model
from safelight.spec import Denoised

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

Models = Callable[[str], Model]
Checkpoints = Callable[[str], Path]
USUAL: dict[str, Any] = {"sampler": "Euler", "steps": 5, "guidance": 4.0, "guidance_rescale": 0.0, "seed": 7}


def ours(model: Model, led: Steering, **wishes: Any) -> tuple[Denoised, Image.Image]:
    spec = controlled(spec_for(model, **(USUAL | wishes)), led)
    with SteppedEngine() as engine:
        job = engine.add(spec, model, PICTURES, led=led)
        engine.finish()
        return spec, engine.image(job)


def theirs(
    folder: Path, path: Path, spec: Denoised, faces: list[list[float]], *, weight: float, clip: Any = None, **more: Any
) -> Image.Image:
    """`clip` is the picture's, for FaceID Plus: its states are set on the projection, as diffusers' guide has it."""
    import diffusers

    reference = Reference(folder)
    xl = reference.description.family.name == "sdxl"
    pipeline_class = getattr(diffusers, f"StableDiffusion{'XL' if xl else ''}Pipeline")
    guided = spec.guidance > 1
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        scheduler = diffusers_scheduler(find_sampler(spec.sampler), dict(reference.description.scheduler))
        made: Any = pipeline_class(**reference.components_for(pipeline_class, scheduler))
        made.set_progress_bar_config(disable=True)
        encoder = "image_encoder" if clip else None
        made.load_ip_adapter(path.parent, subfolder="", weight_name=path.name, image_encoder_folder=encoder)
        made.set_ip_adapter_scale(weight)
        if clip:
            [projection] = made.unet.encoder_hid_proj.image_projection_layers
            [states] = made.prepare_ip_adapter_image_embeds([clip], None, torch.device("cpu"), 1, True)
            projection.clip_embeds, projection.shortcut = states, more.pop("shortcut")
        embeddings = torch.tensor(faces)[None]
        if guided:
            embeddings = torch.cat([torch.zeros_like(embeddings), embeddings])
        return made(
            prompt=spec.prompt,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance,
            generator=torch.Generator("cpu").manual_seed(spec.seed),
            ip_adapter_image_embeds=[embeddings],
            width=SIDE,
            height=SIDE,
        ).images[0]


@pytest.mark.parametrize(
    ("lora", "tokens", "faces", "guidance"),
    [(True, 4, 1, 4.0), (True, 4, 1, 1.0), (True, 4, 2, 4.0), (False, 16, 3, 4.0)],
    ids=["face", "face without guidance", "two faces", "portrait"],
)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_faceid_adapter_draws_what_diffusers_draws_with_it(
    kind: str,
    lora: bool,
    tokens: int,
    faces: int,
    guidance: float,
    model: Models,
    checkpoint: Checkpoints,
    tmp_path: Path,
) -> None:
    path = write_faceid(tmp_path / "ip-adapters" / "face.safetensors", model(kind), tokens=tokens, lora=lora)
    seen = [face(seed) for seed in range(faces)]
    led = picture_led(adapters_in(tmp_path), model(kind), "face", image=None, faces=seen, weight=0.7)
    spec, picture = ours(model(kind), led, guidance=guidance)
    expected = theirs(checkpoint(kind), path, spec, seen, weight=0.7)
    assert psnr(picture, expected) >= MIN_PSNR
    assert psnr(picture, draw(spec_for(model(kind), **(USUAL | {"guidance": guidance})), model(kind))) < 40
    other = [face(seed) for seed in range(10, 10 + faces)]
    led = picture_led(adapters_in(tmp_path), model(kind), "face", image=None, faces=other, weight=0.7)
    assert psnr(picture, ours(model(kind), led, guidance=guidance)[1]) < 50, "a face that does nothing shows nothing"


@pytest.mark.parametrize(("name", "shortcut"), [("faceid-plus", False), ("faceid-plusv2", True)])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_faceid_plus_draws_what_diffusers_draws_with_it(
    kind: str, name: str, shortcut: bool, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """Version 2 is told by its name, and by nothing in the file."""
    encoder = write_encoder(tmp_path / "ip-adapters" / "image_encoder")
    path = write_faceid(tmp_path / "ip-adapters" / f"{name}.safetensors", model(kind), encoder=encoder)
    led = picture_led(adapters_in(tmp_path), model(kind), name, faces=[face()], weight=0.7)
    spec, picture = ours(model(kind), led)
    expected = theirs(checkpoint(kind), path, spec, [face()], weight=0.7, clip=PICTURES[LOOK], shortcut=shortcut)
    assert psnr(picture, expected) >= MIN_PSNR
    assert led.pictures[0].pinned.shortcut is shortcut
    led = picture_led(adapters_in(tmp_path), model(kind), name, faces=[face()], weight=0.7, shortcut=not shortcut)
    assert psnr(picture, ours(model(kind), led)[1]) < 50
