"""Rows of one network call that look at faces: in company, beside a LoRA, and in any order of arrival."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.control_files import PICTURES, adapters_in, controlled, picture_led, write_encoder, write_ip_adapter
from tests.engine.test_control import MIN_PSNR
from tests.face_files import face, write_faceid
from tests.fakes import Steering, SteppedEngine, draw, psnr, spec_for
from tests.lora_files import active, dora, write_kohya
from tests.tiny_models import load

from safelight.models.adapters.lora_effect import ActiveLora
from safelight.models.networks.load import Model

Models = Callable[[str], Model]
Leads = Callable[..., Steering]


def leads_in(folder: Path, model: Model) -> Leads:
    encoder = write_encoder(folder / "ip-adapters" / "image_encoder")
    write_ip_adapter(folder / "ip-adapters" / "pictures.safetensors", model, encoder=encoder)
    write_faceid(folder / "ip-adapters" / "face.safetensors", model)
    write_faceid(folder / "ip-adapters" / "other.safetensors", model, tokens=16, seed=30)
    effect = adapters_in(folder)

    def lead(*names: str, faces: int = 1, **use: Any) -> Steering:
        seen = {"image": None, "faces": [face(seed) for seed in range(faces)]}
        pictures = [
            picture_led(effect, model, name, **(use if name == "pictures" else seen | use)).pictures for name in names
        ]
        return Steering(pictures=tuple(one for several in pictures for one in several))

    return lead


def drawn(model: Model, led: Steering, *loras: ActiveLora, **wishes: Any) -> Image.Image:
    spec = controlled(spec_for(model, **wishes), led).model_copy(update={"loras": tuple(one.pinned for one in loras)})
    with SteppedEngine() as engine:
        job = engine.add(spec, model, PICTURES, led=led, loras=loras)
        engine.finish()
        return engine.image(job)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_rows_that_look_at_faces_draw_what_each_draws_alone(kind: str, model: Models, tmp_path: Path) -> None:
    ours = model(kind)
    leads = leads_in(tmp_path, ours)
    lora = active(write_kohya(tmp_path / "lora.safetensors", ours), ours)
    sets = [
        leads("face"),
        leads("face", faces=3, weight=0.5),
        leads("other", end=0.5),
        leads("face", "other", "face", "pictures", weight=0.4),
        leads("pictures"),
        Steering(),
    ]
    wishes = [{"seed": i, "steps": 4, "guidance": (1.0, 4.0)[i % 2]} for i in range(len(sets))]
    worn = [(lora,) if i in (1, 5) else () for i in range(len(sets))]
    with SteppedEngine() as engine:
        jobs = []
        for led, wish, loras in zip(sets, wishes, worn, strict=True):
            spec = controlled(spec_for(ours, **wish), led)
            spec = spec.model_copy(update={"loras": tuple(one.pinned for one in loras)})
            jobs.append(engine.add(spec, ours, PICTURES, led=led, loras=loras))
        engine.finish()
        together = [engine.image(job) for job in jobs]
    alone = [drawn(ours, led, *loras, **wish) for led, wish, loras in zip(sets, wishes, worn, strict=True)]
    assert min(psnr(a, b) for a, b in zip(alone, together, strict=True)) >= MIN_PSNR
    without = [drawn(ours, Steering(), *loras, **wish) for wish, loras in zip(wishes, worn, strict=True)]
    differences = [psnr(a, b) for a, b in zip(alone, without, strict=True)]
    assert max(differences[:-1]) < 50
    assert differences[-1] == float("inf")


def test_a_row_without_a_face_has_its_very_bits_in_a_batch_of_the_same_shape(model: Models, tmp_path: Path) -> None:
    ours = model("sd1")
    leads = leads_in(tmp_path, ours)

    def beside(led: Steering) -> bytes:
        with SteppedEngine() as engine:
            job = engine.add(spec_for(ours, seed=1), ours)
            engine.add(controlled(spec_for(ours, seed=2), led), ours, PICTURES, led=led)
            engine.finish()
            return engine.image(job).tobytes()

    assert beside(Steering()) == beside(leads("face")) == beside(leads("face", "other", faces=2))


def test_weight_0_is_nothing_the_lora_included(model: Models, tmp_path: Path) -> None:
    ours = model("sd1")
    led = leads_in(tmp_path, ours)("face", weight=0.0)
    assert drawn(ours, led).tobytes() == draw(spec_for(ours), ours).tobytes()


def test_a_picture_does_not_depend_on_which_lora_came_first(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """A DoRA's gain is one of the layer's own output, whatever a face adds to it."""
    made = []
    for first in ("lora", "face"):
        ours = load(checkpoint("sd1"))  # of its own: hooks stay in a network, in the order in which they came
        led = leads_in(tmp_path / first, ours)("face")
        lora = active(write_kohya(tmp_path / f"{first}.safetensors", ours, dora), ours)
        drawn(ours, led if first == "face" else Steering(), *([lora] if first == "lora" else []))
        made.append(drawn(ours, led, lora).tobytes())
    assert made[0] == made[1]
