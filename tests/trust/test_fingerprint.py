"""The same picture after what happens to pictures, told from other pictures: those of the documentation."""

from collections.abc import Callable
from io import BytesIO
from itertools import permutations
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageOps

from safelight.trust.fingerprint import SAME, agreement, likeness

GRID = Image.open(Path(__file__).parents[2] / "docs" / "images" / "mini-grid.png").convert("RGB")
PICTURES = [GRID.crop((left, 0, left + 128, 128)).resize((256, 256)) for left in range(0, GRID.width, 128)]
"""One of each subject."""
KEPT = [likeness(picture) for picture in PICTURES]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def screenshot(image: Image.Image) -> Image.Image:
    return jpeg(image.crop((6, 4, 251, 249)).resize((213, 213)), 80)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "JPEG 30": lambda image: jpeg(image, 30),
    "half size": lambda image: image.resize((128, 128)),
    "three times as large": lambda image: image.resize((768, 768)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "grey": ImageOps.grayscale,
    "mirrored": ImageOps.mirror,
    "screenshot": screenshot,
    "cropped by 10 %": lambda image: image.crop((0, 12, 230, 242)),
    "cropped by 40 %": lambda image: image.crop((60, 40, 214, 194)),
    "with transparency": lambda image: image.convert("RGBA"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_picture_is_the_same(name: str) -> None:
    found = [agreement(kept, CHANGES[name](picture)) for kept, picture in zip(KEPT, PICTURES, strict=True)]
    assert min(found) >= SAME, found


def test_other_pictures_are_not() -> None:
    found = {(a, b): agreement(KEPT[a], PICTURES[b]) for a, b in permutations(range(0, len(PICTURES), 2), 2)}
    assert {pair: value for pair, value in found.items() if value >= SAME} == {}


def test_a_part_of_a_wide_picture_is_the_same_and_less_than_half_of_it_is_not() -> None:
    wide = GRID.crop((0, 0, 512, 128))
    kept = likeness(wide)
    assert agreement(kept, wide.crop((20, 5, 480, 120))) >= SAME
    assert agreement(kept, wide.crop((0, 0, 128, 128))) < SAME


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (500, 3), (3, 500)])
def test_an_empty_picture_agrees_with_nothing(size: tuple[int, int]) -> None:
    blank = Image.new("RGB", size, "white")
    assert agreement(likeness(blank), blank) == 0
    assert agreement(KEPT[0], blank) == 0
    assert agreement(likeness(blank), PICTURES[0]) == 0


def test_a_likeness_is_small() -> None:
    assert max(map(len, KEPT)) < 6000
