"""What a model draws well, what is begun smaller, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from safelight.engine.job import scaled_side
from safelight.errors import UnsupportedOption
from safelight.models.checkpoints.catalogue import MINI
from safelight.models.checkpoints.families import Description, describe
from safelight.models.checkpoints.sizes import (
    GOOD_AREA,
    first_pass,
    good_sizes,
    require_area,
    size_warning,
    with_highres,
)
from safelight.spec import Draft, HighresFix
from safelight.spec.complete import complete

ABOUT = describe(MINI)


def of_side(side: int) -> Description:
    return replace(ABOUT, defaults=ABOUT.defaults.model_copy(update={"width": side, "height": side}))


def require(about: Description = ABOUT, *, max_native_areas: float = 4, **wishes: object) -> None:
    draft = Draft.model_validate({"prompt": "a red apple", **wishes})
    require_area(about, complete(draft, about.defaults, model_digest="0" * 64), max_native_areas=max_native_areas)


def test_the_sizes_of_a_model_have_its_area_in_many_proportions() -> None:
    assert good_sizes(ABOUT) == ["128x128", "160x104", "104x160", "168x96", "96x168"]
    assert good_sizes(of_side(1024))[:2] == ["1024x1024", "1256x840"]
    sides = [[int(side) for side in size.split("x")] for size in good_sizes(of_side(512))]
    assert all(0.9 < width * height / 512**2 < 1.1 for width, height in sides)


def test_too_large_an_area_is_refused_with_the_sizes_that_work() -> None:
    require(width=256, height=256)
    with pytest.raises(UnsupportedOption, match=r"1024x1024 is 64 times the area .* 128x128, 160x104, .* highres"):
        require(width=1024, height=1024)
    require(width=1024, height=1024, max_native_areas=64)
    require(of_side(1024), width=1024, height=1024)


def test_larger_images_are_allowed_by_highres_and_tiles() -> None:
    digest = "0" * 64
    require(width=128, height=128, highres=HighresFix(scale=8))
    require(width=1024, height=1024, init=digest, tiles={"overlap": 32})
    with pytest.raises(UnsupportedOption, match="size"):
        require(width=1024, height=1024, init=digest)
    with pytest.raises(UnsupportedOption, match="512x512"):
        require(width=1024, height=1024, init=digest, tiles={"side": 512})
    with pytest.raises(UnsupportedOption, match="size"):
        require(width=1024, height=1024, init=digest, mask=digest)


@pytest.mark.parametrize(
    ("size", "side", "first"),
    [
        ((1024, 1024), 128, (128, 128)),
        ((512, 512), 128, (128, 128)),
        ((1792, 1024), 128, (224, 128)),  # 8 is the largest factor
        ((1024, 1024), 512, (512, 512)),
        ((1792, 1024), 1024, (1360, 776)),
        ((1536, 1024), 1024, (1256, 840)),
        ((640, 512), 512, None),
        ((64, 64), 128, None),
    ],
)
def test_large_images_start_at_the_models_native_area(
    size: tuple[int, int], side: int, first: tuple[int, int] | None
) -> None:
    draft = Draft(prompt="a red apple", width=size[0], height=size[1])
    fixed = with_highres(draft, of_side(side))
    if first is None:
        assert fixed is draft
        return
    assert (fixed.width, fixed.height) == first
    assert fixed.highres is not None
    assert tuple(scaled_side(each, fixed.highres.scale, 8) for each in first) == size


def test_drafts_with_an_init_image_or_highres_are_unchanged() -> None:
    for wishes in ({"init": "0" * 64}, {"highres": HighresFix()}, {"width": 64, "height": 64}):
        draft = Draft.model_validate({"prompt": "", "width": 512, "height": 512} | wishes)
        assert with_highres(draft, ABOUT) is draft


Side = st.integers(8, 512).map(lambda side: 8 * side)


@given(Side, Side, st.sampled_from([128, 512, 1024]))
def test_both_sides_have_the_requested_size(width: int, height: int, own: int) -> None:
    assume(width * height > GOOD_AREA * own**2)
    first = first_pass(width, height, own**2, 8)
    assume(first is not None)
    assert first is not None
    scale = width / first[0]
    assert (scaled_side(first[0], scale, 8), scaled_side(first[1], scale, 8)) == (width, height)
    assert 1 < scale <= 8


def test_a_bad_size_gives_a_warning_with_better_options() -> None:
    warning = size_warning(Draft(prompt="", width=512, height=512), ABOUT)
    assert warning is not None
    assert "--width 128 --height 128 --highres 4 --highres-strength 0.4" in warning
    assert size_warning(Draft(prompt=""), ABOUT) is None
