import json
from pathlib import Path

import pytest
from tests.cli.conftest import Call
from tests.lora_files import LINEAR, dora, write, write_kohya
from tests.tiny_models import load

from safelight.assets.read_metadata import read_metadata
from safelight.cli.draft_flags import lora_request
from safelight.models.checkpoints.catalogue import MINI
from safelight.spec import TextToImage


@pytest.fixture
def loras(home: Path) -> Path:
    folder = home / "loras"
    folder.mkdir()
    write_kohya(folder / "ink.safetensors", load(MINI), dora, endings=LINEAR)
    return folder


def test_list_and_show(safelight: Call, loras: Path) -> None:
    [line] = safelight("lora", "list", "--json").stdout.splitlines()
    assert json.loads(line)["name"] == "ink"
    shown = json.loads(safelight("lora", "show", "ink", "--model", "mini", "--json").stdout)
    assert (shown["algorithm"], shown["rank"], shown["unmatched"]) == ("DoRA LoRA", "4", [])
    assert shown["matched"] == "unet 84, text_encoder 18"


def test_show_lists_unmatched_keys(safelight: Call, loras: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(loras / "ink.safetensors")
    more = {
        "lora_unet_nowhere.lora_down.weight": tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"] + 0
    }
    odd = write(tmp_path / "odd.safetensors", tensors | more)
    shown = json.loads(safelight("lora", "show", str(odd), "--model", "mini", "--json").stdout)
    assert shown["unmatched"] == list(more)


def test_a_lora_by_name_and_by_path_draws_the_same(safelight: Call, loras: Path, tmp_path: Path) -> None:
    small = ("--steps", "1", "--width", "64", "--height", "64", "--seed", "1", "--json")
    files = []
    for number, lora in enumerate(("ink:0.5", f"{loras / 'ink.safetensors'}:0.5")):
        said = safelight("generate", "an apple", "--lora", lora, "--out", str(tmp_path / str(number)), *small)
        files.append(Path(json.loads(said.stdout.splitlines()[-1])["path"]))
    specs = [read_metadata(file, max_pixels=10**6, max_file_bytes=10**7).spec for file in files]
    assert all(isinstance(spec, TextToImage) and spec.loras[0].weight == 0.5 for spec in specs)
    assert specs[0].loras[0].digest == specs[1].loras[0].digest


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("ink", {"name": "ink"}),
        ("ink:0.5", {"name": "ink", "weight": "0.5"}),
        ("C:/loras/ink.safetensors", {"name": "C:/loras/ink.safetensors"}),
        ("./ink.safetensors:-1", {"name": "./ink.safetensors", "weight": "-1"}),
    ],
)
def test_a_weight_follows_the_last_colon(text: str, wish: dict[str, str]) -> None:
    assert lora_request(text) == wish


def test_an_unknown_name_is_found_before_a_network_is_loaded(safelight: Call, loras: Path) -> None:
    failed = safelight("generate", "an apple <lora:inc>")
    assert failed.exit_code != 0
    assert "did you mean 'ink'" in failed.stderr
