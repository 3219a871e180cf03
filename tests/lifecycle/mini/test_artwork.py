"""Artwork: what is drawn, how it is named and recoloured, and what is held out."""

import numpy as np

from safelight.lifecycle.mini.artwork import (
    ArtworkPicture,
    dominant_colour,
    hold_out,
    recolour,
    render,
    slug_of,
    svg_of,
)

RED_DISC = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="3" fill="#e02020"/></svg>'
)
LEAFY = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="5" r="3" fill="#e02020"/>'
    '<rect x="4" y="0" width="2" height="2" fill="#20a020"/></svg>'
)


def test_a_drawing_is_named_by_its_main_colour() -> None:
    picture = render(RED_DISC, 32)
    assert picture is not None
    assert picture.shape == (32, 32, 4)
    assert dominant_colour(picture) == ("red", 1.0)


def test_an_empty_drawing_is_no_picture() -> None:
    assert render('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"/>', 16) is None


def test_recolouring_turns_the_main_hue_and_leaves_the_leaf() -> None:
    picture = render(LEAFY, 64)
    assert picture is not None
    blue = recolour(picture, "blue")
    assert dominant_colour(blue)[0] == "blue"
    np.testing.assert_array_equal(blue[..., 3], picture[..., 3])
    leaf = blue[4, 40, :3].astype(int)
    assert leaf[1] > 2 * max(leaf[0], leaf[2])


def test_an_icon_that_is_not_square_becomes_a_square_picture() -> None:
    icons = {"icons": {"bar": {"body": '<rect width="16" height="8"/>', "width": 16, "height": 8}}, "aliases": {}}
    picture = render(svg_of(icons, "bar"), 16)
    assert picture is not None
    assert picture[8, 8, 3] == 255
    assert picture[1, 8, 3] == 0


def test_slugs_are_the_icon_sets_file_names() -> None:
    assert slug_of("Jack-O’-Lantern") == "jack-o-lantern"
    assert slug_of("face with tears of joy") == "face-with-tears-of-joy"


def test_holding_out_is_the_same_every_time_and_leaves_two_styles_of_every_concept() -> None:
    styles = ("noto", "flat", "glossy")
    pictures = [ArtworkPicture(f"thing-{n}", style, "red", own_colour=True) for n in range(300) for style in styles]
    pictures += [ArtworkPicture(f"thing-{n}", style, "blue", own_colour=False) for n in range(300) for style in styles]
    held = hold_out(pictures, 0.03)
    assert held == hold_out(list(reversed(pictures)), 0.03)
    own = [key for key in held if key.endswith("/own")]
    assert len(own) == len({key.split("/")[0] for key in own}) > 0
    assert len(held) > len(own)
