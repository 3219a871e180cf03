"""Regional prompts: under each region's mask, what the network predicts for its prompt."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.tiny_models import INIT, MASK, box_mask, start_picture

from safelight.errors import UnsupportedOption
from safelight.models.adapters.regions import RegionsEffect, mask_of, shares_of
from safelight.models.networks.load import Model
from safelight.spec import Denoised, Region, Tiles

Models = Callable[[str], Model]
PICTURES = {INIT: start_picture(), MASK: box_mask((16, 8, 48, 40))}
LEFT, RIGHT, ALL = (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 1)
CAT: dict[str, Any] = {"prompt": "the cat", "box": LEFT, "weight": 1}


def latent_after_a_step(model: Model, **fields: Any) -> torch.Tensor:
    """Of a picture without guidance, so that the latent is linear in what the network predicts."""
    sampler = model.description.defaults.sampler
    with SteppedEngine() as engine:
        job = engine.add(spec_for(model, guidance=1, sampler=sampler, **fields), model, PICTURES)
        engine.engine.step()
        return job.now.latents[0]


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "flux"])
def test_a_latent_is_that_of_each_prompt_in_its_region(kind: str, model: Models) -> None:
    whole, cat = (latent_after_a_step(model(kind), prompt=prompt) for prompt in ("a photo", "the cat"))
    mixed = latent_after_a_step(model(kind), prompt="a photo", regions=(CAT | {"weight": 0.75},))
    half = whole.shape[-1] // 2
    torch.testing.assert_close(mixed[..., half:], whole[..., half:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        mixed[..., :half], 0.25 * whole[..., :half] + 0.75 * cat[..., :half], atol=1e-4, rtol=1e-4
    )
    assert (whole - cat).abs().max() > 0.01, "the prompts of this test differ"


def test_the_share_of_a_region_is_that_of_a_mask_in_comfyui(model: Models) -> None:
    """There, predictions are averaged by the strengths of their masks: 1 beside the prompt's own 1 is a half."""
    whole, cat = (latent_after_a_step(model("sd1"), prompt=prompt) for prompt in ("a photo", "the cat"))
    mixed = latent_after_a_step(model("sd1"), prompt="a photo", regions=(CAT | {"box": ALL, "weight": 0.5},))
    torch.testing.assert_close(mixed, (whole + cat) / 2, atol=1e-4, rtol=1e-4)


def drawn(model: Model, **fields: Any) -> Image.Image:
    return draw(spec_for(model, **fields), model, PICTURES)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"highres": {"scale": 1.5, "strength": 0.7}},
        {"init": INIT, "strength": 0.7},
        {"init": INIT, "mask": MASK, "strength": 1.0},
        {"init": INIT, "mask": MASK, "only_masked": True, "padding": 4, "strength": 1.0},
        {"sampler": "Heun", "pag_scale": 0.0, "sag_scale": 0.75},
    ],
    ids=["text", "highres", "init", "mask", "only masked", "sag"],
)
def test_a_region_that_is_the_whole_picture_is_its_prompt(model: Models, fields: dict[str, Any]) -> None:
    fields = {"guidance": 4.0, **fields}
    ours = drawn(model("sd1"), prompt="x", regions=(CAT | {"box": ALL},), **fields)
    if fields.get("sag_scale"):  # leads away from what the picture's own prompt makes of it
        assert psnr(ours, drawn(model("sd1"), prompt="x", **fields)) < 60
    else:
        assert psnr(ours, drawn(model("sd1"), prompt="the cat", **fields)) >= 60


def test_a_region_lies_in_the_whole_picture_when_only_a_box_of_it_is_drawn(model: Models) -> None:
    masked = {"init": INIT, "mask": MASK, "only_masked": True, "padding": 0, "strength": 1.0, "prompt": "x"}
    plain = drawn(model("sd1"), **masked)
    beside = drawn(model("sd1"), **masked, regions=(CAT | {"box": (0.8, 0, 1, 1)},))  # the mask ends at 0.75
    inside = drawn(model("sd1"), **masked, regions=(CAT | {"box": (0.25, 0, 0.5, 1)},))
    assert psnr(beside, plain) >= 60
    assert psnr(inside, plain) < 60


def test_regions_and_tiles(model: Models) -> None:
    large = {"init": INIT, "width": 160, "height": 96, "strength": 0.6, "tiles": Tiles(side=64, overlap=16)}
    ours = drawn(model("sd1"), prompt="x", regions=(CAT | {"box": ALL},), **large)
    assert psnr(ours, drawn(model("sd1"), prompt="the cat", **large)) >= 60


def test_each_region_is_a_row_of_each_call(model: Models) -> None:
    with SteppedEngine() as engine:
        spec = spec_for(model("sd1"), guidance=4, regions=(CAT, CAT | {"box": RIGHT}))
        job = engine.add(spec, model("sd1"), PICTURES)
        assert job.rows == 4
        engine.finish()
        assert engine.ended(job)


def region(**fields: Any) -> Region:
    return Region.model_validate({"prompt": "x"} | fields)


@pytest.mark.parametrize(
    ("box", "white"),
    [
        ((0, 0, 0.5, 1), (0, 0, 32, 40)),
        ((0.25, 0.5, 1, 1), (16, 20, 64, 40)),
        ((0.999, 0, 1, 1), (63, 0, 64, 40)),
        ((0, 0, 0.0001, 1), (0, 0, 1, 40)),
    ],
)
def test_a_box_in_pixels(box: tuple[float, ...], white: tuple[int, int, int, int]) -> None:
    expected = np.zeros((40, 64), dtype=np.uint8)
    left, top, right, bottom = white
    expected[top:bottom, left:right] = 255
    np.testing.assert_array_equal(np.asarray(mask_of(region(box=box), (64, 40), {})), expected)


def test_a_mask_is_cropped_as_an_init_picture_is() -> None:
    wide = Image.new("L", (64, 32))
    wide.paste(255, (0, 0, 24, 32))
    mask = np.asarray(mask_of(region(mask=MASK), (32, 32), {MASK: wide}))
    assert mask[:, :8].min() == 255
    assert mask[:, 8:].max() == 0


def test_shares_of_overlapping_regions_are_one_at_most() -> None:
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.5]]).view(2, 1, 1, 4)
    shares = shares_of(masks, [0.9, 0.6])
    torch.testing.assert_close(shares.view(2, 4), torch.tensor([[0.9, 0.6, 0, 0.45], [0, 0.4, 0, 0.3]]))


def test_a_model_that_reads_no_prompt_has_no_regions(model: Models) -> None:
    spec: Denoised = spec_for(model("variation"), prompt="", init=INIT)
    with pytest.raises(UnsupportedOption, match=r"regions: .* reads no prompt"):
        RegionsEffect().require(spec.model_copy(update={"regions": (region(box=ALL),)}), [])
