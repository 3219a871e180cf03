"""Lines out of pictures, against pictures whose lines are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from safelight.imaging.outlines import blurred, canny, connected, invert, lineart, scribble, soft_edge

RED, WHITE = (221, 46, 68), (255, 255, 255)


def disc(inside: tuple[int, int, int] = RED, outside: tuple[int, int, int] = WHITE, side: int = 64) -> Image.Image:
    image = Image.new("RGB", (side, side), outside)
    ImageDraw.Draw(image).ellipse((16, 16, 47, 47), fill=inside)
    return image


def white(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")) >= 128


def test_canny_finds_a_step_once_and_where_it_is() -> None:
    """A step is seen by the two columns beside it alike; of two alike the first in reading order is no ridge."""
    levels = np.zeros((8, 10, 3), dtype=np.uint8)
    levels[:, 5:] = 200
    found = white(canny(Image.fromarray(levels)))
    assert [int(column) for column in np.flatnonzero(found.all(axis=0))] == [4]
    assert found.sum() == 8


def test_canny_sees_an_edge_that_only_one_colour_has() -> None:
    """Of the same brightness, as Pillow weighs it."""
    found = white(canny(disc(inside=(255, 0, 0), outside=(0, 130, 0))))
    assert found.sum() > 60
    assert not white(canny(Image.new("RGB", (16, 16), RED))).any()


@pytest.mark.parametrize("angle", range(0, 180, 15))
def test_canny_is_thin_in_every_direction(angle: int) -> None:
    """No 2x2 square of the outline of a half-plane is filled, and the line is as long as the picture."""
    y, x = np.mgrid[-32:32, -32:32] + 0.25
    slope = np.deg2rad(angle)
    levels = np.where(x * np.cos(slope) + y * np.sin(slope) > 0, 220, 20).astype(np.uint8)
    found = white(canny(Image.fromarray(levels).convert("RGB")))
    squares = found[1:, 1:] & found[:-1, 1:] & found[1:, :-1] & found[:-1, :-1]
    assert not squares.any()
    assert 55 <= found.sum() <= 130


def test_a_weak_line_goes_on_from_a_strong_one_and_does_not_begin() -> None:
    levels = np.full((20, 20), 100, dtype=np.uint8)
    levels[:10, 10:] = 112  # |gx| is 4 times the jump: 48, between the thresholds
    levels[10:, 10:] = 200
    image = Image.fromarray(levels).convert("RGB")
    joined = white(canny(image, (30, 90)))
    # Below, the line is on its own; above, it hangs on it.
    assert joined[:, 8:11].any(axis=1).sum() >= 19
    levels[10:, 10:] = 112
    assert not white(canny(Image.fromarray(levels).convert("RGB"), (30, 90))).any()


@given(st.integers(0, 2**32 - 1))
def test_connected_is_what_a_flood_from_the_strong_places_reaches(seed: int) -> None:
    dice = np.random.default_rng(seed)
    weak = dice.random((7, 9)) < 0.4
    strong = weak & (dice.random((7, 9)) < 0.1)
    reached = strong.copy()
    for _ in range(weak.size):
        padded = np.pad(reached, 1)
        around = sum(padded[1 + i : 8 + i, 1 + j : 10 + j] for i in (-1, 0, 1) for j in (-1, 0, 1))
        reached = reached | ((around > 0) & weak)
    assert (connected(weak, strong) == reached).all()


@pytest.mark.parametrize("draw", [canny, soft_edge, scribble, lineart])
def test_the_outline_of_a_red_disc_is_closed_and_its_inside_is_empty(draw: object) -> None:
    found = white(draw(disc()))  # pyright: ignore
    middle, outside = found[28:36, 28:36], found[:8]
    assert not middle.any()
    assert not outside.any()
    # From the middle outwards, every ray meets it.
    for angle in np.deg2rad(np.arange(0, 360, 5)):
        ray = [(round(31.5 + r * np.sin(angle)), round(31.5 + r * np.cos(angle))) for r in range(10, 24)]
        assert any(found[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any() for y, x in ray), np.rad2deg(angle)


def test_lineart_takes_strokes_and_leaves_shading() -> None:
    paper = np.full((64, 64), 250, dtype=np.uint8) - np.arange(64, dtype=np.uint8)  # shading from left to right
    image = Image.fromarray(paper).convert("RGB")
    ImageDraw.Draw(image).line((10, 50, 54, 50), fill=(20, 20, 20), width=2)
    strokes = np.asarray(lineart(image).convert("L"))
    assert strokes[50:52, 12:52].min() > 100
    assert strokes[:40].max() < 20


def test_scribbles_are_black_and_white_and_inversion_is_its_own() -> None:
    assert set(np.unique(np.asarray(scribble(disc())))) <= {0, 255}
    assert invert(invert(disc())).tobytes() == disc().tobytes()
    assert np.asarray(invert(disc()))[0, 0].tolist() == [0, 0, 0]


def test_a_blur_keeps_the_mean_and_spreads_a_point_as_far_as_it_says() -> None:
    point = np.zeros((41, 41), dtype=np.float32)
    point[20, 20] = 1
    spread = blurred(point, 3.0)
    x = np.arange(41) - 20
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert (spread.sum(axis=0) * x**2).sum() ** 0.5 == pytest.approx(3.0, rel=0.01)
    assert blurred(np.ones((2, 3), dtype=np.float32), 6.0) == pytest.approx(1)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_tiny_pictures_are_no_trouble(size: tuple[int, int]) -> None:
    for draw in (canny, soft_edge, scribble, lineart, invert):
        assert draw(Image.new("RGB", size, RED)).size == size
