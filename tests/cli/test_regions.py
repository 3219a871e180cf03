import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.cli.conftest import Call

from safelight.assets.infotext import from_pairs, parse_infotext
from safelight.assets.read_metadata import read_metadata
from safelight.cli.regions import region_request
from safelight.errors import InvalidRequest
from safelight.settings import Settings
from safelight.spec import Region, TextToImage, parse_draft

SMALL = ("--steps", "2", "--width", "64", "--height", "64", "--seed", "1", "--json")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("left:a red apple", {"prompt": "a red apple", "box": (0, 0, 0.5, 1)}),
        ("bottom@0.6: (grass:1.2)", {"prompt": "(grass:1.2)", "box": (0, 0.5, 1, 1), "weight": 0.6}),
        ("0.5,0,1,.75:a cup: blue", {"prompt": "a cup: blue", "box": (0.5, 0, 1, 0.75)}),
    ],
)
def test_an_area_and_its_prompt(home: Path, text: str, fields: dict[str, Any]) -> None:
    assert Region.model_validate(region_request(text, Settings(home=home))) == Region.model_validate(fields)


def test_an_area_may_be_the_file_of_a_mask(home: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 64), 255).save(tmp_path / "mask@2x.png")
    found = region_request(f"{tmp_path}/mask@2x.png@0.5:a cat", Settings(home=home))
    assert (found["prompt"], found["weight"], len(found["mask"])) == ("a cat", "0.5", 64)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("left", "--region is AREA"),
        ("left:", "--region is AREA"),
        ("middle:a cat", "'middle' is no area; areas are left, right, top, bottom, four fractions"),
        ("0,0,1:a cat", "'0,0,1' is no area"),
    ],
)
def test_what_is_no_region_is_said(home: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        region_request(text, Settings(home=home))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0.5,0,0.2,1:a cat", "left, top, right, bottom: 0.5 must be below 0.2"),
        ("0,0,2,1:a cat", "less than or equal to 1"),
        ("left@0:a cat", "greater than 0"),
        ("left:a <lora:ink:1> cat", "regions: <lora:...> belongs in the prompt"),
        ("left:a cat AND a dog", "AND"),
    ],
)
def test_a_region_that_cannot_be_drawn_is_refused(safelight: Call, text: str, told: str) -> None:
    said = safelight("generate", "a landscape", "--region", text, *SMALL)
    assert said.exit_code == 2
    assert told in said.stderr


def test_regions_are_drawn_written_down_and_replayed(safelight: Call, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "mask.png")
    regions = ("--region", "left:a {red|green} apple", "--region", f"{tmp_path}/mask.png@0.5:a cup")
    said = safelight("generate", "on white", "--wildcards", *regions, *SMALL, "--out", str(tmp_path / "out"))
    file = Path(json.loads(said.stdout.splitlines()[-1])["path"])
    spec = read_metadata(file, max_pixels=10**6, max_file_bytes=10**7).spec
    assert isinstance(spec, TextToImage)
    apple, cup = spec.regions
    assert apple.prompt in ("a red apple", "a green apple")
    assert (cup.prompt, cup.weight, cup.box) == ("a cup", 0.5, None)
    assert json.loads(safelight("replay", str(file), "--json").stdout)["same"] is True
    infotext = json.loads(safelight("info", str(file), "--json").stdout)["raw"]["parameters"]
    read = parse_draft({"prompt": "on white", **from_pairs(parse_infotext(infotext).pairs)})
    assert read.regions == spec.regions
