"""Marks in pictures made here: put in, damaged, and read back exactly."""

from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from safelight.errors import InvalidImage
from safelight.trust.watermark.detect import SURE_Z, Detection, detect
from safelight.trust.watermark.embed import LEVELS, embed
from safelight.trust.watermark.keys import Keyring, WatermarkKey, asset_id

KEY, OTHER = (WatermarkKey(secret=bytes([number]) * 32) for number in (1, 2))
RING = Keyring(keys=(KEY,))
ASSET = asset_id(KEY, "a spec's digest")


def scene(side: int = 512) -> Image.Image:
    """A gradient, noise of a camera's kind, and a few edges."""
    down, right = np.mgrid[:side, :side] / side
    noise = np.random.default_rng(0).normal(0, 4, (side, side, 1))
    colour = np.stack([200 * down, 120 + 60 * right, 180 - 150 * down * right], axis=2) + noise
    picture = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((side // 5, side // 3, side // 2, side // 2), fill=(60, 20, 90))
    draw.ellipse((side // 2, side // 2, side * 4 // 5, side * 7 // 8), fill=(230, 190, 60))
    return picture


def drawing(side: int) -> Image.Image:
    """Flat colours on white, like the embedded model's."""
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((side // 8, side // 6, side * 7 // 8, side * 15 // 16), fill=(220, 40, 50))
    draw.polygon([(side // 2, side // 5), (side * 2 // 3, side // 16), (side // 2, side // 12)], fill=(90, 160, 60))
    draw.ellipse((side // 3, side // 3, side // 2, side // 2), fill=(255, 230, 120))
    return picture


@pytest.fixture(scope="module")
def marked() -> Image.Image:
    picture, outcome = embed(scene(), KEY, ASSET)
    assert outcome.status == "marked"
    return picture


def saved(picture: Image.Image, kind: str, quality: int) -> Image.Image:
    file = BytesIO()
    picture.save(file, kind, quality=quality)
    return Image.open(file)


def assert_read(detection: Detection, asset: str = ASSET, key: WatermarkKey = KEY) -> None:
    assert (detection.found, detection.key_id, detection.asset, detection.crc_ok) == (True, key.id, asset, True)


@pytest.mark.parametrize(
    "picture",
    [
        scene(),
        drawing(512),
        drawing(256),
        drawing(128),
        Image.new("RGB", (256, 256), "white"),
        Image.new("RGB", (320, 200), (90, 120, 60)),
        scene().crop((0, 0, 400, 150)),
        scene(800),
    ],
    ids=lambda picture: f"{picture.width}x{picture.height}",
)
def test_a_marked_picture_reads_as_png_and_as_jpeg(picture: Image.Image) -> None:
    marked, outcome = embed(picture, KEY, ASSET)
    assert (outcome.status, outcome.key_id, outcome.asset) == ("marked", KEY.id, ASSET)
    assert (marked.size, marked.mode) == (picture.size, picture.mode)
    assert_read(detect(marked, RING))
    assert_read(detect(saved(marked, "JPEG", 75), RING))


def test_the_looks_that_are_promised_are_kept(marked: Image.Image) -> None:
    picture = scene()
    difference = np.asarray(marked, np.float64) - np.asarray(picture, np.float64)
    psnr = 10 * np.log10(255**2 / np.mean(difference**2))
    _, outcome = embed(picture, KEY, ASSET)
    assert outcome.psnr_db == pytest.approx(psnr, abs=1e-3)
    assert any(psnr >= least_psnr and outcome.ssim >= least_ssim for least_psnr, least_ssim in LEVELS)


def test_white_ground_is_darkened_by_two_levels_at_most() -> None:
    marked, _ = embed(Image.new("RGB", (256, 256), "white"), KEY, ASSET)
    assert set(np.unique(np.asarray(marked))) == {253, 254, 255}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_it_survives_lossy_formats(marked: Image.Image, kind: str) -> None:
    assert_read(detect(saved(marked, kind, 50 if kind == "JPEG" else 70), RING))


def test_it_survives_half_size_without_a_search(marked: Image.Image) -> None:
    detection = detect(marked.resize((256, 256)), RING)
    assert_read(detection)
    assert (detection.scale, detection.shift) == (0.5, (0, 0))


def test_a_mirrored_picture_reads_and_is_said_to_be(marked: Image.Image) -> None:
    assert not detect(marked, RING).mirrored
    detection = detect(marked.transpose(Image.Transpose.FLIP_LEFT_RIGHT), RING)
    assert_read(detection)
    assert detection.mirrored


def test_a_crop_is_found_at_its_place(marked: Image.Image) -> None:
    detection = detect(marked.crop((40, 30, 500, 480)), RING)
    assert_read(detection)
    assert detection.scale == 1
    # The tile of 128 pixels begins again at 128: 98 pixels down and 88 to the right of the crop's corner.
    assert detection.shift == pytest.approx((98, 88), abs=1)


def test_a_cropped_and_resized_picture_needs_the_full_search(marked: Image.Image) -> None:
    damaged = saved(marked.crop((10, 12, 502, 500)).resize((408, 405)), "JPEG", 80)
    assert not detect(damaged, RING).found
    detection = detect(damaged, RING, search="full")
    assert_read(detection)
    assert detection.search == "full"
    assert detection.scale == pytest.approx(408 / 492, rel=0.005)


def test_another_key_finds_nothing(marked: Image.Image) -> None:
    detection = detect(marked, Keyring(keys=(OTHER,)), search="full")
    assert (detection.found, detection.key_id, detection.asset) == (False, None, None)
    assert detection.z < SURE_Z


def test_an_unmarked_picture_raises_no_alarm() -> None:
    assert not detect(scene(), RING, search="full").found
    assert not detect(Image.new("RGB", (512, 512), "white"), RING, search="full").found


def test_old_marks_read_after_a_rotation(marked: Image.Image) -> None:
    rotated = Keyring(keys=(KEY, OTHER))
    assert_read(detect(marked, rotated))
    newer, _ = embed(scene(), rotated.current, "fedcba9876543210")
    assert_read(detect(newer, rotated), "fedcba9876543210", OTHER)


def test_a_mark_copied_to_another_picture_is_still_the_keys(marked: Image.Image) -> None:
    """That the content is another one, only a ledger of what was drawn can tell."""
    copied = np.asarray(drawing(512), np.int16) + np.asarray(marked) - np.asarray(scene(), np.int16)
    detection = detect(np.clip(copied, 0, 255).astype(np.uint8), RING)
    assert detection.found
    assert detection.key_id == KEY.id


def test_the_same_picture_key_and_asset_give_the_same_pixels(marked: Image.Image) -> None:
    again, _ = embed(scene(), KEY, ASSET)
    assert again.tobytes() == marked.tobytes()
    other, _ = embed(scene(), KEY, "0" * 16)
    assert other.tobytes() != marked.tobytes()


def test_alpha_is_untouched_and_what_nobody_sees_too() -> None:
    picture = scene(256).convert("RGBA")
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (0, 0, 100, 256))
    picture.putalpha(alpha)
    marked, outcome = embed(picture, KEY, ASSET)
    before, after = np.asarray(picture), np.asarray(marked)
    assert outcome.status == "marked"
    assert np.array_equal(before[..., 3], after[..., 3])
    assert np.array_equal(before[:, :100], after[:, :100])
    assert_read(detect(marked, RING))
    # Shown on a white page, it reads as well.
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(marked)
    assert_read(detect(page.convert("RGB"), RING))


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_pictures_stay_grey(mode: str) -> None:
    marked, outcome = embed(scene(256).convert(mode), KEY, ASSET)
    assert (marked.mode, outcome.status) == (mode, "marked")
    assert_read(detect(marked, RING))


@pytest.mark.parametrize("shape", [(256, 256), (256, 256, 3), (256, 256, 4)])
def test_arrays_give_arrays(shape: tuple[int, ...]) -> None:
    array: NDArray[np.uint8] = np.full(shape, 200, np.uint8)
    marked, outcome = embed(array, KEY, ASSET)
    assert (type(marked), marked.shape, marked.dtype) == (np.ndarray, shape, np.uint8)
    assert outcome.status == "marked"
    assert_read(detect(marked, RING))
    assert np.all(array == 200)


def test_a_picture_that_is_too_small_is_left_alone_and_that_is_on_record() -> None:
    picture = scene(64)
    marked, outcome = embed(picture, KEY, ASSET)
    assert (outcome.status, outcome.reason) == ("unmarked", "size")
    assert marked.tobytes() == picture.tobytes()
    assert not detect(picture, RING).found


def test_a_picture_that_cannot_hold_a_mark_is_weak() -> None:
    """Black and white noise: the strongest change that PSNR 40 allows drowns in it."""
    noise = np.random.default_rng(0).integers(0, 2, (128, 128, 1), np.uint8).repeat(3, axis=2) * np.uint8(255)
    _, outcome = embed(noise, KEY, ASSET)
    assert outcome.status == "weak"


@pytest.mark.parametrize(
    "picture", [Image.new("P", (256, 256)), Image.new("CMYK", (256, 256)), np.zeros((256, 256, 3), np.float32)]
)
def test_what_is_no_plain_picture_is_refused(picture: Image.Image | NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidImage):
        embed(picture, KEY, ASSET)
    with pytest.raises(InvalidImage):
        detect(picture, RING)
