import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.assets.specs import FROM_MASK, PLAIN

from safelight.errors import InvalidRequest
from safelight.imaging.canvas import (
    binary_mask,
    box_around,
    fit_to,
    grow,
    inpaint_masks,
    outpaint_canvas,
    painted_box,
    paste_back,
    upscale,
)
from safelight.spec import Inpaint, Sides
from safelight.spec.fields import Fit

sides = st.integers(8, 200)
fits: st.SearchStrategy[Fit] = st.sampled_from(["crop", "stretch", "pad"])


def ramp(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8))


def mask_with(box: tuple[int, int, int, int], size: tuple[int, int] = (100, 80)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@given(sides, sides, sides, sides, fits)
def test_every_fit_gives_the_size_asked_for(width: int, height: int, to_width: int, to_height: int, fit: Fit) -> None:
    assert fit_to(ramp(width, height), to_width, to_height, fit).size == (to_width, to_height)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(4000, 1), (1, 4000)])
def test_an_extremely_long_image_can_be_fitted(size: tuple[int, int], fit: Fit) -> None:
    assert fit_to(ramp(*size), 64, 64, fit).size == (64, 64)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_a_picture_of_the_right_size_keeps_its_very_pixels(fit: Fit) -> None:
    assert fit_to(ramp(40, 24), 40, 24, fit).tobytes() == ramp(40, 24).tobytes()


def test_crop_cuts_pad_fills_and_stretch_distorts() -> None:
    """A picture red on the left and blue on the right, twice as wide as what is wanted."""
    wide = Image.new("RGB", (80, 40), "red")
    wide.paste((0, 0, 255), (40, 0, 80, 40))
    half = {fit: np.asarray(fit_to(wide, 40, 40, fit)) for fit in ("crop", "stretch", "pad")}
    assert all(
        (picture[20, 0] == (255, 0, 0)).all() and (picture[20, -1] == (0, 0, 255)).all() for picture in half.values()
    )
    # Padded rows repeat the edge, so no black bars are there to be drawn on.
    assert (half["pad"][0] == half["pad"][10]).all()
    seen = {fit: fit_to(ramp(80, 40), 40, 40, fit).getpixel((0, 20)) for fit in ("crop", "stretch")}
    assert seen["crop"][0] > 15, "the left quarter is cut off"
    assert seen["stretch"][0] < 5


def test_growing_repeats_the_edge() -> None:
    grown = np.asarray(grow(ramp(10, 6), left=3, top=2, right=1, bottom=4))
    assert grown.shape == (12, 14, 3)
    assert (grown[2:8, 3:13] == np.asarray(ramp(10, 6))).all()
    assert (grown[:2, 3:13] == grown[2, 3:13]).all()
    assert (grown[:, :3] == grown[:, 3:4]).all()


@given(st.builds(Sides, **{side: st.sampled_from([0, 8, 64]) for side in ("left", "top", "right", "bottom")}))
def test_an_outpainting_canvas_keeps_the_picture_and_marks_the_rest(margins: Sides) -> None:
    image = ramp(64, 48)
    if not any(margins.model_dump().values()):
        with pytest.raises(InvalidRequest, match="at least one side"):
            outpaint_canvas(image, margins)
        return
    canvas, mask = outpaint_canvas(image, margins)
    box = (margins.left, margins.top, margins.left + 64, margins.top + 48)
    assert canvas.crop(box).tobytes() == image.tobytes()
    marked = np.asarray(mask) == 255
    outside = np.ones_like(marked)
    outside[box[1] : box[3], box[0] : box[2]] = False
    assert marked[outside].all(), "all that is new is drawn"
    overlap = marked & ~outside
    assert not overlap[8:-8, 8:-8][margins.top : margins.top + 32, margins.left : margins.left + 48].any()
    assert overlap.any(), "and a little of the old, to hide the seam"


def test_an_odd_picture_is_grown_to_sides_that_can_be_drawn_and_not_resized() -> None:
    canvas, mask = outpaint_canvas(ramp(61, 45), Sides(left=8))
    assert canvas.size == mask.size == (72, 48)
    assert canvas.crop((8, 0, 69, 45)).tobytes() == ramp(61, 45).tobytes()


def test_a_mask_is_made_black_and_white_and_its_soft_copy_is_not() -> None:
    grey = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (8, 1)))
    hard, soft = binary_mask(grey, blur=4, invert=False)
    assert set(np.unique(hard)) == {0, 255}
    assert np.asarray(hard)[0].tolist() == [0] * 128 + [255] * 128
    assert len(np.unique(soft)) > 10
    inverted, _ = binary_mask(grey, blur=0, invert=True)
    assert np.asarray(inverted)[0].tolist() == [255] * 128 + [0] * 128


def test_a_mask_with_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="all black"):
        binary_mask(Image.new("L", (8, 8)), blur=4, invert=False)
    with pytest.raises(InvalidRequest, match="all black"):
        binary_mask(Image.new("L", (8, 8), 255), blur=4, invert=True)


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("soft_mask", [False, True])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("blur", [0.0, 3.0])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_the_painted_box_holds_all_that_an_inpainting_changes(
    fit: Fit, blur: float, invert: bool, soft_mask: bool, only_masked: bool
) -> None:
    how = {"fit": fit, "mask_blur": blur, "mask_invert": invert, "soft_mask": soft_mask, "only_masked": only_masked}
    spec = Inpaint(**PLAIN | FROM_MASK | how | {"width": 96, "height": 64})
    original, mask = ramp(120, 90), Image.new("L", (60, 45), 255 * invert)
    mask.paste(255 * (not invert), (20, 14, 33, 30))
    box = painted_box(mask, spec, size=original.size)
    # As `engine/prepare.py` does it.
    mask = fit_to(mask, *original.size, "stretch")
    if only_masked:
        base = original
        hard, soft = inpaint_masks(mask, spec)
        inner = box_around(hard, padding=8, width=96, height=64)
    else:
        base = fit_to(original, 96, 64, fit)
        hard, soft = inpaint_masks(fit_to(mask, 96, 64, fit), spec)
        inner = None
    drawn = paste_back(base, Image.new("RGB", (96, 64), (7, 250, 3)), soft, inner)
    changed = Image.fromarray((np.asarray(drawn) != np.asarray(base)).any(-1)).getbbox()
    assert changed
    assert box[0] <= changed[0] < changed[2] <= box[2] <= base.width
    assert box[1] <= changed[1] < changed[3] <= box[3] <= base.height
    # A weight below 1/255 of a difference below 255 may change nothing.
    assert max(abs(a - b) for a, b in zip(box, changed, strict=True)) <= 3


boxes = st.tuples(st.integers(0, 90), st.integers(0, 70), st.integers(1, 60), st.integers(1, 60)).map(
    lambda box: (box[0], box[1], min(box[0] + box[2], 100), min(box[1] + box[3], 80))
)


@given(boxes, st.integers(0, 40), st.sampled_from([(64, 64), (96, 64), (64, 128), (512, 512)]))
def test_the_box_around_a_mask_is_that_of_diffusers(
    box: tuple[int, int, int, int], padding: int, size: tuple[int, int]
) -> None:
    from diffusers.image_processor import VaeImageProcessor

    mask = mask_with(box)
    ours = box_around(mask, padding=padding, width=size[0], height=size[1])
    assert ours == VaeImageProcessor.get_crop_region(mask, *size, pad=padding)


@given(boxes, st.integers(0, 40), st.sampled_from([(64, 64), (96, 64), (64, 128)]))
def test_the_box_holds_the_mask_lies_inside_and_has_the_proportions(
    box: tuple[int, int, int, int], padding: int, size: tuple[int, int]
) -> None:
    left, top, right, bottom = box_around(mask_with(box), padding=padding, width=size[0], height=size[1])
    assert 0 <= left <= box[0]
    assert 0 <= top <= box[1]
    assert box[2] <= right <= 100
    assert box[3] <= bottom <= 80
    if (right - left) < 100 and (bottom - top) < 80:
        # One pixel of rounding, on the side that was grown.
        assert abs((right - left) * size[1] - (bottom - top) * size[0]) <= max(size)


def test_pasting_back_leaves_what_is_not_masked() -> None:
    original, drawn = ramp(100, 80), Image.new("RGB", (64, 64), "white")
    mask = mask_with((20, 20, 40, 40))
    box = box_around(mask, padding=5, width=64, height=64)
    pasted = np.asarray(paste_back(original, drawn, mask, box))
    inside = np.asarray(mask) == 255
    assert (pasted[inside] == 255).all()
    assert (pasted[~inside] == np.asarray(original)[~inside]).all()


def test_a_box_of_other_proportions_is_not_distorted() -> None:
    """A mask as wide as the picture, drawn as a square: the picture is padded, and the padding cut off again."""
    original = ramp(100, 40)
    mask = mask_with((0, 10, 100, 30), (100, 40))
    box = box_around(mask, padding=40, width=64, height=64)
    assert box == (0, 0, 100, 40)
    drawn = fit_to(original.crop(box), 64, 64, "pad")
    pasted = paste_back(original, drawn, mask, box)
    # Down to 64 % and up again blurs the ramp, and the colours that jump from 255 to 0 most; distortion moves it by 20.
    difference = np.asarray(pasted, dtype=int)[..., :2] - np.asarray(original, dtype=int)[..., :2]
    assert np.abs(difference).max() <= 4


@given(sides, sides, st.sampled_from([1.5, 2.0, 3.7]))
def test_upscaling_multiplies_the_sides(width: int, height: int, scale: float) -> None:
    assert upscale(ramp(width, height), scale).size == (round(width * scale), round(height * scale))
