"""Our pictures against the pipelines of diffusers, with the same weights, words and seed."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.fakes import draw, psnr, spec_for
from tests.parity.pipelines import Reference
from tests.tiny_models import INIT, MASK, SIDE, box_mask, start_picture

from safelight.diffusion.samplers import SAMPLERS
from safelight.models.networks.load import Model
from safelight.spec import Denoised

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

MIN_PSNR = 60.0
"""The promise. We see 77 dB and more (62 with zero terminal SNR, where two-call samplers subtract latents of size 4096
in float32, as diffusers does): sums in another order move a few pixels by one level of 255. A wrong
coefficient or a noise drawn out of turn shows below 40; `test_the_measure_sees_small_mistakes` guards the scale."""

TASKS: dict[str, dict[str, Any]] = {
    "text-to-image": {},
    "image-to-image": {"init": INIT, "strength": 0.7},
    "inpaint": {"init": INIT, "mask": MASK, "mask_blur": 0.0, "strength": 0.7},
}
USUAL = {"steps": 5, "guidance": 5.0, "guidance_rescale": 0.0, "seed": 7}
PICTURES = {INIT: start_picture(), MASK: box_mask((16, 8, 48, 40))}
FAMILIES = {"diffusion": ("sd1", "sd2", "sdxl", "zero_snr"), "flow": ("flow",), "edm": ("edm",)}
FAMILIES["any"] = FAMILIES["diffusion"]

Models = Callable[[str], Model]
References = Callable[[str], Reference]

FULL = [(name, kind, task) for name, s in SAMPLERS.items() for kind, task in product(FAMILIES[s.kind], TASKS)]
# Every sampler once; families and tasks take turns, so that each family meets each task.
SOME = [
    (name, FAMILIES[s.kind][number % len(FAMILIES[s.kind])], list(TASKS)[number % len(TASKS)])
    for number, (name, s) in enumerate(SAMPLERS.items())
]


def compare(ours: Model, theirs: Reference, pictures: dict[str, Image.Image] = PICTURES, **wishes: Any) -> float:
    if "init" in wishes:
        wishes = {"width": SIDE, "height": SIDE} | wishes
    spec = spec_for(ours, **(USUAL | wishes))
    expected = theirs.draw(spec, pictures)
    assert is_telling(expected), "a picture that is flat or clipped hides differences"
    return psnr(draw(spec, ours, pictures), expected)


def is_telling(image: Image.Image) -> bool:
    levels = np.asarray(image)
    return levels.std() > 20 and ((levels == 0) | (levels == 255)).mean() < 0.3


@pytest.mark.parametrize(("sampler", "kind", "task"), SOME, ids=[" ".join(case) for case in SOME])
def test_every_sampler_draws_what_diffusers_draws(
    sampler: str,
    kind: str,
    task: str,
    model: Models,
    reference: References,
    record_property: Callable[[str, Any], None],
) -> None:
    found = compare(model(kind), reference(kind), sampler=sampler, **TASKS[task])
    record_property("psnr", found)
    assert found >= MIN_PSNR


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "kind", "task"), FULL, ids=[" ".join(case) for case in FULL])
def test_every_sampler_on_every_family_in_every_task(
    sampler: str,
    kind: str,
    task: str,
    model: Models,
    reference: References,
    record_property: Callable[[str, Any], None],
) -> None:
    found = compare(model(kind), reference(kind), sampler=sampler, **TASKS[task])
    record_property("psnr", found)
    assert found >= MIN_PSNR


@pytest.mark.parametrize(
    "wishes",
    [
        pytest.param({"guidance": 1.0}, id="no guidance"),
        pytest.param({"guidance": 0.0}, id="guidance 0 is none too"),
        pytest.param({"guidance_rescale": 0.7}, id="guidance rescale"),
        # Without guidance: diffusers skips layers for the prompt alone, and AUTOMATIC1111, as we, for both prompts.
        pytest.param({"clip_skip": 2, "guidance": 1.0}, id="clip skip"),
        pytest.param({"negative_prompt": "a dog, café"}, id="negative prompt"),
        pytest.param({"prompt": ""}, id="no words"),
        pytest.param({"width": 96, "height": 64}, id="not square"),
        pytest.param({"steps": 1}, id="one step"),
    ],
)
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_option_means_what_it_means_there(
    kind: str, wishes: dict[str, Any], model: Models, reference: References
) -> None:
    assert compare(model(kind), reference(kind), sampler="DPM++ 2M Karras", **wishes) >= MIN_PSNR


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("task", ["image-to-image", "inpaint"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_little_strength_and_full_strength_start_where_diffusers_starts(
    kind: str, task: str, strength: float, model: Models, reference: References
) -> None:
    wishes = TASKS[task] | {"strength": strength}
    assert compare(model(kind), reference(kind), sampler="Euler a", **wishes) >= MIN_PSNR


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM", "Heun"])
@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("kind", ["inpaint", "sdxl_inpaint"])
def test_networks_that_take_a_mask_inpaint_as_in_diffusers(
    kind: str, strength: float, sampler: str, model: Models, reference: References
) -> None:
    wishes = TASKS["inpaint"] | {"strength": strength}
    assert compare(model(kind), reference(kind), sampler=sampler, **wishes) >= MIN_PSNR


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
@pytest.mark.parametrize("kind", ["sd1", "inpaint", "sdxl"])
def test_only_masked_is_padding_mask_crop(
    kind: str, size: tuple[int, int], model: Models, reference: References
) -> None:
    """The box is drawn at full size and pasted back, from a picture larger than what is drawn."""
    pictures = {INIT: start_picture(200, 160), MASK: box_mask((30, 100, 70, 124), 200, 160)}
    wishes = TASKS["inpaint"] | {"only_masked": True, "padding": 4, "width": size[0], "height": size[1]}
    assert compare(model(kind), reference(kind), pictures, sampler="Euler", **wishes) >= MIN_PSNR


@pytest.mark.parametrize("guidance", [1.0, 8.0])
def test_a_distilled_network_is_told_the_guidance(guidance: float, model: Models, reference: References) -> None:
    assert compare(model("lcm"), reference("lcm"), sampler="Default", steps=4, guidance=guidance) >= MIN_PSNR


def test_the_guidance_told_to_a_distilled_network_matters(model: Models, reference: References) -> None:
    ours, theirs = model("lcm"), reference("lcm")
    eight, one = (theirs.draw(spec_for(ours, sampler="Default", steps=4, guidance=g)) for g in (8.0, 1.0))
    assert psnr(eight, one) < MIN_PSNR


def test_a_seed_is_the_seed_of_a_cpu_generator(model: Models, reference: References) -> None:
    """Large ones too, and one seed's picture is not another's."""
    large = 2**32 - 5
    assert compare(model("sd1"), reference("sd1"), seed=large) >= MIN_PSNR
    ours = model("sd1")
    assert psnr(draw(spec_for(ours, seed=large), ours), draw(spec_for(ours, seed=7), ours)) < 30


def test_the_measure_sees_small_mistakes(model: Models, reference: References) -> None:
    """Guidance off by 1 % is past the tolerance, so a coefficient that is off by as much would be found."""
    ours, theirs = model("sd1"), reference("sd1")
    right, wrong = (spec_for(ours, steps=5, guidance=guidance) for guidance in (5.0, 5.05))
    assert psnr(draw(wrong, ours), theirs.draw(right)) < MIN_PSNR
    assert_same_but(right, wrong, "guidance")


def assert_same_but(one: Denoised, other: Denoised, name: str) -> None:
    assert one.model_copy(update={name: getattr(other, name)}) == other
