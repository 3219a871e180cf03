"""Pictures of an earlier version: their specs have the digests that they had, and they can be drawn again.

`draw.py` made them. The bytes are the same on the machine that drew them; elsewhere the last bits of kernels differ, so
pictures are compared.
"""

import json
from collections.abc import Iterator
from contextlib import aclosing
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from tests.fakes import psnr
from tests.golden.draw import HERE, NAMES, STARTS, furnish, settings_of

from safelight.api import run
from safelight.assets.read_metadata import read_metadata
from safelight.cli.replay import SAME_DB
from safelight.events import Stored
from safelight.pipeline import generate
from safelight.spec import Spec, parse_spec
from safelight.studio import Studio, open_studio

DIGESTS: dict[str, str] = json.loads((HERE / "digests.json").read_text())


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("golden")
    furnish(home)
    with open_studio(settings_of(home)) as opened:
        for start in STARTS.glob("*.png"):
            assert opened.assets.put(start.read_bytes(), ".png").id == start.stem
        yield opened


def test_every_golden_picture_is_replayed() -> None:
    assert {path.stem for path in HERE.glob("*.png")} == set(NAMES) == set(DIGESTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_picture_is_drawn_again(name: str, studio: Studio) -> None:
    file = HERE / f"{name}.png"
    spec = spec_of(file)
    assert spec.digest() == DIGESTS[name]
    assert parse_spec(json.loads(spec.model_dump_json())).digest() == DIGESTS[name]
    with Image.open(file) as golden:
        assert psnr(replayed(spec, studio), golden.convert("RGB")) >= SAME_DB


def spec_of(file: Path) -> Spec:
    spec = read_metadata(file, max_pixels=10**7, max_file_bytes=10**7).spec
    assert spec is not None
    return spec


def replayed(spec: Spec, studio: Studio) -> Image.Image:
    async def draw() -> Image.Image:
        async with aclosing(generate(spec, studio)) as events:
            async for event in events:
                if isinstance(event, Stored):
                    return Image.open(BytesIO(Path(event.path).read_bytes())).convert("RGB")
        raise AssertionError(f"not drawn: {event}")

    return run(draw())
