import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from safelight.errors import InvalidRequest
from safelight.imaging.subject import background_mask


def disc(size: int = 64, *, ground: str = "white", colour: str = "red", blur: float = 0) -> Image.Image:
    image = Image.new("RGB", (size, size), ground)
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=colour)
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur else image


def mask_of(image: Image.Image) -> np.ndarray:
    return np.asarray(background_mask(image.convert("RGBA")))


def test_transparent_areas_are_background() -> None:
    image = disc().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    assert (mask_of(image) == 255 - np.asarray(image.getchannel("A"))).all()


def test_an_even_colour_that_reaches_the_edge_is_background() -> None:
    image = disc()
    ImageDraw.Draw(image).ellipse((28, 28, 36, 36), fill="white")  # a hole in the subject is part of it
    mask = mask_of(image)
    assert mask[0, 0] == mask[5, 60] == 255
    assert mask[32, 20] == mask[32, 32] == 0
    assert set(np.unique(mask)) == {0, 255}, "a sharp edge mixes nothing"


def test_where_colours_mix_the_mask_is_grey() -> None:
    """On its way from white to red, a pixel that is half of each is half background."""
    image = disc(blur=1.0)
    mask, green = mask_of(image).astype(float), np.asarray(image)[..., 1].astype(float)
    row = slice(10, 30)
    mixed = (mask[32, row] > 0) & (mask[32, row] < 255)
    assert mixed.any()
    assert np.abs(mask[32, row] - green[32, row])[mixed].max() <= 26  # the subject's colour is read near its edge
    assert mask[32, 32] == 0


def test_noise_and_soft_shadows_are_background_still() -> None:
    noise = np.random.default_rng(1).integers(-10, 10, (64, 64, 3))
    noisy = Image.fromarray(np.clip(np.asarray(disc(ground="#d0e0f0")).astype(int) + noise, 0, 255).astype(np.uint8))
    assert (mask_of(noisy)[:8] == 255).all()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.linear_gradient("L"), "its edges are not of one colour; give a mask"),
        (Image.new("RGB", (32, 32), "blue"), "the image is all background"),
        (Image.new("RGBA", (32, 32), (0, 0, 0, 0)), "the image is all background"),
    ],
)
def test_images_without_a_clear_background_are_refused(image: Image.Image, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        mask_of(image)
