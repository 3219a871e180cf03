"""`safelight models`: versions on the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Call
from tests.models.registry.files import write_lora

from safelight.models.checkpoints.catalogue import MINI


def said(safelight: Call, *words: object) -> list[dict[str, Any]]:
    done = safelight("models", *words, "--json")
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refusal(safelight: Call, *words: object) -> str:
    done = safelight("models", *words)
    assert done.exit_code != 0
    return done.stderr


def test_a_model_is_added_named_drawn_with_and_shown(safelight: Call) -> None:
    [added] = said(safelight, "add", MINI, "--name", "brand", "--licence", "mit", "--alias", "production")
    assert (added["version"], added["licence"]["title"]) == ("brand@1", "MIT License")
    small = ("--model", "brand@production", "--steps", 1, "--width", 64, "--height", 64, "--json")
    drawn = json.loads(safelight("generate", "an apple", *small).stdout)
    assert drawn["model_digest"] == added["digest"]
    assert [model["name"] for model in said(safelight, "list")] == ["mini", "brand", "brand@production"]
    [shown] = said(safelight, "show", "brand@production")
    assert (shown["version"], shown["family"], shown["licence"]["id"]) == ("brand@1", "sd1", "mit")
    for_people = safelight("models", "show", "brand").stdout
    assert "MIT License" in for_people
    assert "came from" in for_people


def test_an_alias_moves_back_and_forth_and_tells_its_history(safelight: Call, tmp_path: Path) -> None:
    for seed in (1, 2):
        said(safelight, "add", write_lora(tmp_path / "ink.safetensors", seed))
    said(safelight, "alias", "ink@production", "ink@1", "--reason", "first")
    said(safelight, "alias", "ink@production", "ink@2", "--reason", "sharper")
    turns = said(safelight, "alias", "ink@production")
    assert [(turn["to"], turn["previous"], turn["reason"]) for turn in turns] == [
        ("ink@2", "ink@1", "sharper"),
        ("ink@1", None, "first"),
    ]
    assert said(safelight, "alias") == [{"alias": "ink@production", "to": "ink@2"}]
    assert "cycle" in refusal(safelight, "alias", "ink@production", "ink@production", "--follow")
    said(safelight, "alias", "ink@production", "--remove")
    assert said(safelight, "alias") == []


def test_other_kinds_are_listed_by_kind(safelight: Call, tmp_path: Path, home: Path) -> None:
    said(safelight, "add", write_lora(tmp_path / "ink.safetensors"))
    write_lora(home / "loras" / "own.safetensors", width=2048)
    found = said(safelight, "list", "--kind", "lora")
    assert [(lora["name"], lora["base"]) for lora in found] == [("ink", "sd1"), ("own", "sdxl")]
    assert "did you mean 'lora'" in refusal(safelight, "list", "--kind", "loar")


def test_a_licence_is_recorded_with_ones_own_restrictions(safelight: Call, tmp_path: Path) -> None:
    done = safelight("models", "add", write_lora(tmp_path / "ink.safetensors"))
    assert "No licence is recorded" in done.stdout
    [told] = said(safelight, "licence", "ink", "cc-by-nc-4.0", "--restriction", "Our shop only.")
    assert told["licence"]["restrictions"][-2:] == ["No commercial use.", "Our shop only."]
    assert "Our shop only." in safelight("models", "licence", "ink@1").stdout


def test_what_an_alias_points_to_is_not_removed_by_accident(safelight: Call, tmp_path: Path) -> None:
    said(safelight, "add", write_lora(tmp_path / "ink.safetensors"), "--alias", "production")
    assert "ink@production points to ink@1" in refusal(safelight, "rm", "ink@1")
    assert safelight("models", "rm", "ink@1", "--force").stdout == "ink@1 is removed.\n"
    assert said(safelight, "show", "ink@1")[0]["removed"]


def test_verify_says_what_changed_and_fails(safelight: Call, tmp_path: Path) -> None:
    [added] = said(safelight, "add", write_lora(tmp_path / "ink.safetensors"))
    assert "unchanged" in safelight("models", "verify").stdout
    Path(added["path"]).write_bytes(b"x")
    done = safelight("models", "verify", "ink")
    assert done.exit_code == 1
    assert "ink@1  changed" in done.stdout
    assert "1 versions have changed or missing files" in done.stderr


def test_a_folder_is_linked_listed_and_forgotten(safelight: Call, tmp_path: Path) -> None:
    write_lora(tmp_path / "webui" / "models" / "Lora" / "ink.safetensors")
    (tmp_path / "webui" / "models" / "Lora" / "old.pt").touch()
    done = safelight("models", "link", "webui").stdout
    assert "lora 1" in done
    assert "safelight models convert" in done
    assert [lora["name"] for lora in said(safelight, "list", "--kind", "lora")] == ["ink"]
    assert len(said(safelight, "link")) == 1
    safelight("models", "link", "webui", "--remove")
    assert said(safelight, "list", "--kind", "lora") == []


def test_a_network_in_a_file_of_its_own_becomes_a_model_that_draws(safelight: Call, tmp_path: Path) -> None:
    shutil.copyfile(MINI / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "brand.safetensors")
    told = refusal(safelight, "show", "./brand.safetensors")
    assert "safelight models join" in told
    assert "brand.safetensors FOLDER" in told
    assert "brand  " in safelight("models", "join", "brand.safetensors", "mini").stdout
    small = ("--model", "brand", "--steps", 1, "--width", 64, "--height", 64, "--json")
    assert safelight("generate", "an apple", *small).exit_code == 0
    assert "exists already" in refusal(safelight, "join", "brand.safetensors", "mini")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("add", "nowhere.safetensors"), "no such file or folder"),
        (("add", "http://127.0.0.1:9/x.safetensors"), "inside a private network"),
        (("show", "ink@1"), "no model named"),
        (("rm", "ink"), "no version 'ink' is registered"),
        (("alias", "ink@production", "ink@1"), "no version 'ink@1' is registered"),
        (("link", "nowhere"), "is not a folder"),
        (("join", "nowhere.safetensors", "mini"), "cannot be read"),
        (("join", "x.safetensors", "mini", "--name", "../x"), "is not a valid model name"),
    ],
)
def test_what_cannot_be_says_why(safelight: Call, words: tuple[str, ...], why: str) -> None:
    assert why in " ".join(refusal(safelight, *words).split())
