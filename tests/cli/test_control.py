import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.conftest import Call
from tests.control_files import (
    colours_picture,
    controlnet,
    shapes_picture,
    write_encoder,
    write_ip_adapter,
    write_ldm,
)
from tests.tiny_models import load, write_sd1

from safelight.assets.read_metadata import read_metadata
from safelight.cli.leads import control_request, picture_request
from safelight.errors import InvalidRequest
from safelight.imaging import outlines
from safelight.spec import TextToImage

SMALL = ("--model", "tiny", "--steps", "2", "--width", "64", "--height", "64", "--seed", "1", "--json")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tiny = load(write_sd1(folder / "models" / "tiny"))
    (folder / "controlnets").mkdir()
    write_ldm(folder / "controlnets" / "canny.safetensors", controlnet(tiny))
    encoder = write_encoder(folder / "ip-adapters" / "image_encoder")
    write_ip_adapter(folder / "ip-adapters" / "ip.safetensors", tiny, encoder=encoder)
    return folder


@pytest.fixture
def stocked(home: Path, models: Path) -> Path:
    for folder in models.iterdir():
        (home / folder.name).symlink_to(folder)
    return home


def test_a_picture_led_by_two_is_drawn_and_replayed(safelight: Call, stocked: Path, tmp_path: Path) -> None:
    shapes_picture(1).save(tmp_path / "sketch.png")
    colours_picture(1).save(tmp_path / "cat.png")
    leads = ("--control", f"{tmp_path}/sketch.png:canny:canny:0.8:0-0.5", "--ip", f"{tmp_path}/cat.png:0.6")
    said = safelight("generate", "an apple", *leads, *SMALL, "--out", str(tmp_path / "out"))
    file = Path(json.loads(said.stdout.splitlines()[-1])["path"])
    spec = read_metadata(file, max_pixels=10**6, max_file_bytes=10**7).spec
    assert isinstance(spec, TextToImage)
    [control], [look] = spec.controls, spec.picture_prompts
    assert (control.model, control.preprocessor, control.weight, control.end) == ("canny", "canny", 0.8, 0.5)
    assert (look.model, look.encoder, look.weight) == ("ip", "image_encoder", 0.6)

    again = json.loads(safelight("replay", str(file), "--json").stdout)
    assert again["same"] is True
    plain = safelight("generate", "an apple", *SMALL, "--out", str(tmp_path / "plain"))
    other = Path(json.loads(plain.stdout.splitlines()[-1])["path"])
    assert Image.open(other).tobytes() != Image.open(file).tobytes()

    # Elsewhere, where the hint and the picture are not stored, they can be given.
    shutil.rmtree(stocked / "blobs")
    refused = safelight("replay", str(file))
    assert refused.exit_code != 0
    assert "--led-by FILE" in refused.stderr
    outlines.canny(shapes_picture(1)).save(tmp_path / "hint.png")
    given = ("--led-by", str(tmp_path / "hint.png"), "--led-by", str(tmp_path / "cat.png"))
    assert json.loads(safelight("replay", str(file), *given, "--json").stdout)["same"] is True


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("a.png:net", {"image": "a.png", "model": "net"}),
        ("a.png:canny", {"image": "a.png", "model": "canny"}),
        ("a.png:canny:canny", {"image": "a.png", "model": "canny", "preprocessor": "canny"}),
        ("a.png:net:0.8", {"image": "a.png", "model": "net", "weight": "0.8"}),
        ("a.png:net:.5:0.2-1", {"image": "a.png", "model": "net", "weight": ".5", "start": "0.2", "end": "1"}),
        ("a.png:net:prompt:tile", {"image": "a.png", "model": "net", "mode": "prompt", "preprocessor": "tile"}),
        ("a.png:net:as-pose:0.5", {"image": "a.png", "model": "net", "hint_kind": "pose", "weight": "0.5"}),
        ("a.png:net:depth/dpt", {"image": "a.png", "model": "net", "preprocessor": "depth/dpt"}),
        ("C:/x/a.png:net:1", {"image": "C:/x/a.png", "model": "net", "weight": "1"}),
        ("a.png:./nets/net.safetensors", {"image": "a.png", "model": "./nets/net.safetensors"}),
    ],
)
def test_a_control_is_read_from_its_end(text: str, wish: dict[str, str]) -> None:
    assert control_request(text) == wish


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("cat.png", {"image": "cat.png"}),
        ("cat.png:0.6", {"image": "cat.png", "weight": "0.6"}),
        ("cat.png:ip:0.6:0-0.5", {"image": "cat.png", "model": "ip", "weight": "0.6", "start": "0", "end": "0.5"}),
        ("C:/cat.png", {"image": "C:/cat.png"}),
        ("C:/cat.png:ip", {"image": "C:/cat.png", "model": "ip"}),
    ],
)
def test_a_picture_prompt_is_read_from_its_end(text: str, wish: dict[str, str]) -> None:
    assert picture_request(text) == wish


@pytest.mark.parametrize("text", ["a.png", "", ":net", "a.png:", "0.5"])
def test_half_a_control_is_answered_with_its_form(text: str) -> None:
    with pytest.raises(InvalidRequest, match="FILE:MODEL"):
        control_request(text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--control", "FILE:cany"), "did you mean 'canny'"),
        (("--control", "FILE:canny:cany"), "no preprocessor named 'cany'; did you mean 'canny'"),
        (("--control", "FILE:canny:2-3"), "less than or equal to 1"),
        (("--control", "FILE:canny:as-poses"), "'pose', 'depth'"),
        (("--control", "FILE:canny:as-pose"), "has no hint kind 'pose'"),
        (("--control", "nowhere.png:canny"), "nowhere.png"),
        (("--control", "FILE:canny", "--model", "mini"), "does not fit mini"),
        (("--ip", "FILE:other"), "no IP-Adapter named 'other'"),
        (("--ip", "FILE", "--model", "mini"), "does not fit mini"),
    ],
)
def test_what_cannot_be_is_said_before_a_network_is_loaded(
    options: tuple[str, ...], says: str, safelight: Call, stocked: Path, tmp_path: Path
) -> None:
    shapes_picture(1).save(tmp_path / "sketch.png")
    given = [option.replace("FILE", str(tmp_path / "sketch.png")) for option in options]
    failed = safelight("generate", "an apple", "--model", "tiny", *given)
    assert failed.exit_code != 0
    assert says in failed.stderr


def test_no_adapter_is_said_to_be_missing(safelight: Call, home: Path, tmp_path: Path) -> None:
    shapes_picture(1).save(tmp_path / "cat.png")
    assert (
        "there is none in SAFELIGHT_HOME/ip-adapters"
        in safelight("generate", "an apple", "--ip", str(tmp_path / "cat.png")).stderr
    )


def test_nets_and_preprocessors_are_listed(safelight: Call, stocked: Path) -> None:
    said = [json.loads(line) for line in safelight("control", "list", "--json").stdout.splitlines()]
    assert [(one["kind"], one["name"]) for one in said[:3]] == [
        ("control", "canny"),
        ("ip-adapter", "ip"),
        ("image-encoder", "image_encoder"),
    ]
    plain = safelight("control").stdout
    assert "soft-edge" in plain
    assert "Depth models (preprocessor depth):\n  none" in plain


def test_a_hint_can_be_looked_at(safelight: Call, tmp_path: Path) -> None:
    shapes_picture(1).save(tmp_path / "sketch.png")
    said = safelight("control", "hint", str(tmp_path / "sketch.png"), "canny", "--thresholds", "50,90")
    made = Path(said.stdout.strip())
    assert made == tmp_path / "sketch-canny.png"
    assert Image.open(made).tobytes() == outlines.canny(shapes_picture(1), (50, 90)).tobytes()
    for arguments, says in ((("cany",), "did you mean 'canny'"), (("canny", "--thresholds", "5"), "two numbers")):
        failed = safelight("control", "hint", str(tmp_path / "sketch.png"), *arguments)
        assert says in failed.stderr
