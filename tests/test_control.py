"""The path with control, from Python: pictures become hints at the door, and a spec says what it was drawn with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.control_files import (
    colours_picture,
    controlnet,
    shapes_picture,
    t2i_adapter,
    write_encoder,
    write_folder,
    write_ip_adapter,
)
from tests.tiny_models import box_mask, load, start_picture, write_sd1

import safelight
from safelight.errors import IncompatibleControl, InvalidRequest, UnknownAsset
from safelight.imaging import outlines
from safelight.resolve.hints import within
from safelight.settings import Settings
from safelight.spec import ControlRequest, TextToImage, parse_spec
from safelight.spec.effects import PinnedControl
from safelight.spec.parts import Span
from safelight.studio import Studio

SMALL = {"model": "tiny", "steps": 2, "width": 64, "height": 64, "seed": 1}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("home")
    tiny = load(write_sd1(home / "models" / "tiny"))
    for number, name in enumerate(("canny", "scribble")):
        write_folder(home / "controlnets" / name, controlnet(tiny, seed=number))
    write_folder(home / "t2i-adapters" / "other", t2i_adapter(tiny))
    encoder = write_encoder(home / "ip-adapters" / "image_encoder")
    write_ip_adapter(home / "ip-adapters" / "ip.safetensors", tiny, encoder=encoder)
    with safelight.open_studio(Settings(home=home, max_output_pixels=10_000)) as studio:
        yield studio


def test_several_lead_one_picture_and_the_spec_is_enough_to_draw_it_again(studio: Studio, tmp_path: Path) -> None:
    shapes_picture(1).save(tmp_path / "sketch.png")
    [drawn] = safelight.generate(
        "an apple",
        controls=[
            {"image": colours_picture(1), "model": "canny", "preprocessor": "canny", "weight": 0.8},
            {"image": tmp_path / "sketch.png", "model": "scribble", "end": 0.5},
        ],
        picture_prompts=[{"image": str(tmp_path / "sketch.png"), "model": "ip", "weight": 0.5}],
        studio=studio,
        **SMALL,
    )
    first, second = drawn.spec.controls
    assert second.hint == second.image == drawn.spec.picture_prompts[0].image
    fitted = colours_picture(1).resize((77, 64), Image.Resampling.LANCZOS)
    assert studio.picture(first.hint).size == (64, 64) != fitted.size
    spec = parse_spec(drawn.spec.model_dump(mode="json"))
    assert spec == drawn.spec
    # A draft that names the hint and the files is drawn with them, and what made them does not matter any more.
    wish = {**first.model_dump(), "preprocessor": "none", "image": first.hint}
    [again] = safelight.generate(
        "an apple",
        controls=[wish, second.model_dump()],
        picture_prompts=[use.model_dump() for use in drawn.spec.picture_prompts],
        studio=studio,
        **SMALL,
    )
    assert again.image.tobytes() == drawn.image.tobytes()
    [plain] = safelight.generate("an apple", studio=studio, **SMALL)
    assert plain.image.tobytes() != drawn.image.tobytes()


def test_a_hint_is_made_once_for_all_pictures_of_a_request(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Image.Image] = []

    def counted(image: Image.Image, thresholds: object = None) -> Image.Image:
        made.append(image)
        return image

    monkeypatch.setattr(outlines, "canny", counted)
    wish = {"image": colours_picture(7), "model": "canny", "preprocessor": "canny"}
    drawn = safelight.generate("an apple", n=3, controls=[wish], studio=studio, **SMALL)
    assert len({picture.spec.controls[0].hint for picture in drawn}) == 1
    assert [image.size for image in made] == [(64, 64)]


def test_a_hint_for_a_masked_part_is_as_large_as_the_whole(studio: Studio) -> None:
    wish = {"image": colours_picture(8), "model": "canny", "preprocessor": "soft-edge"}
    [drawn] = safelight.generate(
        "an apple",
        init=start_picture(96, 80),
        mask=box_mask((16, 16, 48, 48), 96, 80),
        only_masked=True,
        controls=[wish],
        studio=studio,
        **SMALL,
    )
    assert studio.picture(drawn.spec.controls[0].hint).size == (96, 80)
    assert drawn.image.size == (96, 80)


def test_hints_are_no_larger_than_what_a_server_draws() -> None:
    assert within(64, 64, 10_000) == (64, 64)
    assert within(4096, 2048, 1_000_000) == (1414, 707)
    assert within(9000, 1, 100) == (948, 1)


@pytest.mark.parametrize(
    ("wish", "error", "says"),
    [
        ({"model": "other"}, IncompatibleControl, "its blocks downsample"),
        ({"model": "canny", "hint": "0" * 64}, UnknownAsset, "0000"),
        ({"model": "canny", "start": 0.5, "end": 0.5}, InvalidRequest, "start: 0.5 must be below end 0.5"),
        ({"model": "canny", "weigth": 1}, InvalidRequest, "weigth"),
        ({}, InvalidRequest, "model"),
    ],
)
def test_what_cannot_be_is_refused(studio: Studio, wish: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        safelight.generate("an apple", controls=[{"image": colours_picture(1), **wish}], studio=studio, **SMALL)


def test_a_span_holds_the_steps_that_lie_wholly_inside() -> None:
    assert [Span(start=0.2, end=0.6).holds(step, 5) for step in range(5)] == [False, True, True, False, False]
    assert all(Span().holds(step, 7) for step in range(7))
    assert not Span(start=0.1, end=0.15).holds(0, 4)


def test_specs_of_before_keep_their_digests_and_controls_change_them(studio: Studio) -> None:
    [plain] = safelight.generate("an apple", studio=studio, **SMALL)
    spec = plain.spec
    assert isinstance(spec, TextToImage)
    without = spec.model_dump(mode="json", exclude={"controls", "picture_prompts"})
    assert parse_spec(without).digest() == spec.digest()
    use = PinnedControl(
        **ControlRequest(model="a", image="0" * 64).model_dump() | {"digest": "1" * 64, "hint": "0" * 64}
    )
    assert spec.model_copy(update={"controls": (use,)}).digest() != spec.digest()
