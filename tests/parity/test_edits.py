"""Edits by instruction and variations, against the pipelines of diffusers."""

from typing import Any

import pytest
import torch
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.parity.test_pipelines import MIN_PSNR, Models, References, compare
from tests.tiny_models import INIT, SIDE, start_picture

from safelight.engine.job import Job
from safelight.engine.prepare import prepare
from safelight.errors import UnsupportedOption
from safelight.spec import Edit, Variation

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

INSTRUCTION = {"init": INIT, "prompt": "a red apple, photo", "width": SIDE, "height": SIDE, "guidance": 5.0, "steps": 4}
LIKE_IT = {"init": INIT, "prompt": "", "width": SIDE, "height": SIDE, "guidance": 3.0, "steps": 4}


@pytest.mark.parametrize(
    "wishes",
    [
        pytest.param({}, id="both guidances"),
        pytest.param({"image_guidance": 1.0}, id="no guidance by the picture: two rows do"),
        pytest.param({"guidance": 1.0}, id="no guidance at all"),
        pytest.param({"negative_prompt": "a dog", "image_guidance": 2.5}, id="a negative prompt"),
    ],
)
@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
@pytest.mark.parametrize("kind", ["edit", "sdxl_edit"])
def test_instructions_are_followed_as_in_diffusers(
    kind: str, sampler: str, wishes: dict[str, Any], model: Models, reference: References
) -> None:
    assert compare(model(kind), reference(kind), sampler=sampler, **INSTRUCTION | wishes) >= MIN_PSNR


@pytest.mark.parametrize("wishes", [{}, {"guidance": 1.0}, {"width": 96}])
@pytest.mark.parametrize("size", [(SIDE, SIDE), (100, 70)])
def test_variations_are_those_of_diffusers(
    size: tuple[int, int], wishes: dict[str, Any], model: Models, reference: References
) -> None:
    """Pictures of any shape: CLIP looks at their middle."""
    pictures = {INIT: start_picture(*size)}
    found = compare(model("variation"), reference("variation"), pictures, sampler="DDIM", **LIKE_IT | wishes)
    assert found >= MIN_PSNR


def test_the_picture_guidance_matters(model: Models, reference: References) -> None:
    ours, pictures = model("edit"), {INIT: start_picture()}
    strict, loose = (draw(spec_for(ours, **INSTRUCTION, image_guidance=scale), ours, pictures) for scale in (1.5, 1.55))
    assert psnr(strict, loose) < MIN_PSNR


def test_unlike_edits_share_their_calls(model: Models) -> None:
    """One, two and three network rows a picture, in one batch; each is what it is alone."""
    ours, pictures = model("edit"), {INIT: start_picture()}
    wishes: list[dict[str, Any]] = [{}, {"image_guidance": 1.0}, {"guidance": 1.0}, {"image_guidance": 4.0, "seed": 9}]
    specs = [spec_for(ours, **INSTRUCTION | one) for one in wishes]
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec, ours, pictures) for spec in specs]
        assert [job.rows for job in jobs] == [3, 2, 1, 3]
        job_service.finish()
        together = [job_service.image(job) for job in jobs]
    for spec, image in zip(specs, together, strict=True):
        assert psnr(draw(spec, ours, pictures), image) >= MIN_PSNR


def test_variations_of_unlike_pictures_share_their_calls(model: Models) -> None:
    ours = model("variation")
    pictures = {INIT: start_picture(), "c" * 64: start_picture(40, 90)}
    specs = [spec_for(ours, **LIKE_IT | {"init": init, "seed": seed}) for seed, init in enumerate(pictures)]
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec, ours, pictures) for spec in specs]
        job_service.finish()
        together = [job_service.image(job) for job in jobs]
    assert psnr(*together) < 40
    for spec, image in zip(specs, together, strict=True):
        assert psnr(draw(spec, ours, pictures), image) >= MIN_PSNR


def test_at_less_strength_an_edit_starts_where_image_to_image_does(model: Models) -> None:
    """The same autoencoder and seed: the same noised picture."""
    pictures, wishes = {INIT: start_picture()}, INSTRUCTION | {"strength": 0.5}
    jobs = [
        Job(id=kind, spec=spec_for(model(kind), **wishes), model=model(kind), pictures=pictures)
        for kind in ("edit", "sd1")
    ]
    for job in jobs:
        prepare(job, cache=None)
    edit, plain = (job.now for job in jobs)
    assert edit.schedule.steps == plain.schedule.steps == 2
    assert torch.equal(edit.latents[0], plain.latents[0])
    assert edit.extra_channels is not None


@pytest.mark.parametrize(
    ("kind", "wishes", "said"),
    [
        ("edit", {"init": None}, "changes a picture as the prompt says: give it an init"),
        ("edit", {"mask": "b" * 64}, "mask: .* leave it out"),
        ("variation", {"prompt": ""}, "give it an init"),
        ("variation", {"init": INIT, "strength": 0.5, "prompt": ""}, "strength: .* variations"),
        ("variation", {"init": INIT}, "prompt: .* variations"),
        ("sd1", {"image_guidance": 2.0}, "follows no instructions"),
    ],
)
def test_what_such_a_model_cannot_be_asked_is_said(kind: str, wishes: dict[str, Any], said: str, model: Models) -> None:
    given = {"init": INIT} | wishes if kind == "edit" else wishes
    with pytest.raises(UnsupportedOption, match=said):
        spec_for(model(kind), **given)


def test_the_kind_is_told_from_the_folder(model: Models) -> None:
    assert [model(kind).description.reads for kind in ("sd1", "inpaint", "edit", "sdxl_edit", "variation")] == [
        "words", "words", "instructions", "instructions", "picture",
    ]  # fmt: skip
    assert isinstance(spec_for(model("edit"), **INSTRUCTION), Edit)
    assert isinstance(spec_for(model("variation"), **LIKE_IT), Variation)
