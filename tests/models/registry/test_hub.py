"""Versions from the hub: a server on this machine that speaks its API, each in a fresh process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.models.hub_server import COMMIT, Hub, serve
from tests.models.registry.files import write_lora, write_vae

from safelight.models.checkpoints.hub_file import HUB_FILE, is_hub_id

ADD = """
import json, sys
from safelight.cli.versions import facts
from safelight.errors import SafelightError
from safelight.models.registry.registry import open_registry
from safelight.settings import Settings
with open_registry(Settings.from_environment()) as registry:
    for source in sys.argv[1:]:
        try:
            print(json.dumps(facts(registry.add(source))))
        except SafelightError as error:
            print(json.dumps({"error": type(error).__name__, "why": str(error)}))
"""


def added(hub: Hub, cache: Path, *sources: str) -> list[dict[str, Any]]:
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment = os.environ | quiet | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache)}
    command = [sys.executable, "-c", ADD, *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_repository_of_one_file_is_added_with_its_commit_and_licence(tmp_path: Path) -> None:
    write_lora(tmp_path / "repo" / "pytorch_lora_weights.safetensors")
    (tmp_path / "repo" / "README.md").write_text("about")
    with serve(Hub(tmp_path / "repo", card={"license": "other", "license_name": "CC-BY-4.0"})) as hub:
        [version, named] = added(
            hub, tmp_path / "cache", "team/model", f"team/model/pytorch_lora_weights.safetensors@{COMMIT}"
        )
    assert (version["version"], version["kind"], version["revision"]) == ("pytorch_lora_weights@1", "lora", COMMIT)
    assert version["source"] == "hf://team/model/pytorch_lora_weights.safetensors"
    assert version["licence"]["title"] == "CC BY 4.0"
    assert named["version"] == version["version"]


def test_a_checkpoint_is_added_complete_with_its_commit(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with serve(Hub(checkpoint("sd1"), card={"license": "creativeml-openrail-m"})) as hub:
        [version] = added(hub, tmp_path / "cache", "team/model@main")
    assert (version["version"], version["kind"], version["revision"]) == ("model@1", "checkpoint", COMMIT)
    assert (version["source"], version["licence"]["id"]) == ("hf://team/model", "creativeml-openrail-m")
    assert Path(version["path"], "unet", "config.json").is_file()


def test_where_there_are_several_files_one_must_be_named(tmp_path: Path) -> None:
    write_lora(tmp_path / "repo" / "ink.safetensors")
    write_vae(tmp_path / "repo" / "deep" / "vae.safetensors")
    with serve(Hub(tmp_path / "repo")) as hub:
        several, wrong, right, nobody = added(
            hub,
            tmp_path / "cache",
            "team/model",
            "team/model/inc.safetensors",
            "team/model/deep/vae.safetensors",
            "team/other",
        )
    assert several["why"] == "team/model has deep/vae.safetensors, ink.safetensors; use team/model/FILE for one of them"
    assert "did you mean 'ink.safetensors'" in wrong["why"]
    assert (right["version"], right["kind"]) == ("vae@1", "vae")
    assert nobody["error"] == "UnknownModel"


def test_a_repository_of_pickles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "model.ckpt").write_bytes(b"pickle")
    with serve(Hub(tmp_path / "repo")) as hub:
        [refused] = added(hub, tmp_path / "cache", "team/model")
    assert refused["error"] == "UnsafeFile"
    assert hub.sent == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name/a.safetensors", ("org/name", "a.safetensors", None)),
        ("org/name/sub dir/a.safetensors@v1", ("org/name", "sub dir/a.safetensors", "v1")),
        ("org/name/../../a.safetensors", None),
        ("org/name/.hidden/a.safetensors", None),
        ("org/name/a.ckpt", None),
    ],
)
def test_the_syntax_of_a_file_on_the_hub(text: str, parts: tuple[str, ...] | None) -> None:
    found = HUB_FILE.match(text)
    assert (found and found.groups()) == parts


def test_a_path_is_no_hub_id() -> None:
    assert [is_hub_id(text) for text in ("org/name", "../a.safetensors", "./a", "loras/a.safetensors")] == [
        True,
        False,
        False,
        False,
    ]
