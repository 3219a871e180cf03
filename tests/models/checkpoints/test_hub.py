"""Downloads, from a server on this machine that speaks the hub's API, each in a fresh process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.models.hub_server import COMMIT, Hub, serve
from tests.patience import PATIENCE_S

from safelight.errors import UnsafeFile
from safelight.models.checkpoints.hub import HUB_ID, wanted_files

FETCH = """
import json, sys
from safelight.errors import SafelightError
from safelight.models.checkpoints.hub import fetch
for name in sys.argv[2:]:
    try:
        print("RESULT", json.dumps({"folder": str(fetch(name, half=sys.argv[1] == "half"))}))
    except SafelightError as error:
        print("RESULT", json.dumps({"error": type(error).__name__, "why": str(error)}))
"""
WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    """A repository like those on the hub: pickles, a half-precision copy, everything in one file, a safety checker."""
    for stem in WEIGHTS:
        shutil.copy(folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors")
        (folder / f"{stem}.bin").write_bytes(b"pickle")
    for name in (
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "README.md",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    ):
        (folder / name).write_bytes(b"large")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"large")
    with serve(Hub(folder)) as hub:
        yield hub


def fetch(
    hub: Hub, cache: Path, *names: str, half: bool = False, endpoint: str | None = None, **extra: str
) -> list[Any]:
    quiet = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_ETAG_TIMEOUT": "2",
    }
    environment = {**os.environ, **quiet, "HF_ENDPOINT": endpoint or hub.endpoint, "HF_HOME": str(cache), **extra}
    environment["PYTHONPATH"] = "src"
    arguments = [sys.executable, "-c", FETCH, "half" if half else "full", *(names or (hub.name,))]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    results = [
        json.loads(line.removeprefix("RESULT")) for line in done.stdout.splitlines() if line.startswith("RESULT")
    ]
    assert results, done.stderr
    return results


def files_in(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_only_files_that_are_read_are_downloaded_and_only_once(hub: Hub, tmp_path: Path) -> None:
    first, again = fetch(hub, tmp_path, hub.name, f"{hub.name}@{COMMIT}")
    assert Path(first["folder"]).name == COMMIT, "pinned"
    assert again == first
    got = files_in(first["folder"])
    assert {f"{stem}.safetensors" for stem in WEIGHTS} <= got
    assert {"model_index.json", "unet/config.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"} <= got
    assert not {name for name in got if ".fp16." in name or "non_ema" in name or "pruned" in name}
    assert not {
        name for name in got if name.endswith((".bin", ".md", ".ckpt")) or name == "safety_checker/model.safetensors"
    }
    assert sorted(hub.sent) == sorted(got), "nothing twice, and nothing that is not kept"

    # The same name without a network, by the branch and by the commit; elsewhere it was never heard of.
    nowhere = "http://127.0.0.1:9"
    for extra in ({"HF_HUB_OFFLINE": "1"}, {}):
        offline = fetch(hub, tmp_path, hub.name, f"{hub.name}@{COMMIT}", "team/other", endpoint=nowhere, **extra)
        assert offline[:2] == [first, first]
        assert offline[2]["error"] == "HubUnreachable"
        assert "team/other" in offline[2]["why"]


def test_half_precision_is_downloaded_if_requested(hub: Hub, tmp_path: Path) -> None:
    [found] = fetch(hub, tmp_path, half=True)
    weights = {name for name in files_in(found["folder"]) if name.endswith(".safetensors")}
    assert weights == {f"{stem}.fp16.safetensors" for stem in WEIGHTS}


def test_an_interrupted_download_is_resumed(hub: Hub, tmp_path: Path) -> None:
    broken = "unet/diffusion_pytorch_model.safetensors"
    (hub.folder / broken).write_bytes(os.urandom(30_000_000))  # huggingface_hub saves 10 MB at a time
    hub.cut_off.add(broken)
    results = fetch(hub, tmp_path, hub.name, hub.name)
    assert "folder" in results[-1], results
    assert (Path(results[-1]["folder"]) / broken).read_bytes() == (hub.folder / broken).read_bytes()
    ranges = [asked for name, asked in hub.bodies if name == broken]
    assert len(ranges) >= 2
    assert ranges[-1] is not None, "the second try asks for the rest only"
    assert not ranges[-1].startswith("bytes=0-")


def test_an_incomplete_download_is_not_used(hub: Hub, tmp_path: Path) -> None:
    [found] = fetch(hub, tmp_path)
    (Path(found["folder"]) / "vae/diffusion_pytorch_model.safetensors").unlink()
    results = fetch(hub, tmp_path, hub.name, f"{hub.name}@{COMMIT}", HF_HUB_OFFLINE="1")
    assert [result["error"] for result in results] == ["HubUnreachable"] * 2


def test_a_missing_repository_is_reported(hub: Hub, tmp_path: Path) -> None:
    names = ["team/nothing", f"{hub.name}@nowhere", "-bad-/--name"]
    assert [result["error"] for result in fetch(hub, tmp_path, *names)] == ["UnknownModel"] * 3
    assert not hub.sent


def test_pickles_alone_are_refused_before_a_byte_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    for path in hub.folder.glob("vae/*.safetensors"):
        path.unlink()
    [result] = fetch(hub, tmp_path)
    assert result["error"] == "UnsafeFile"
    assert "vae" in result["why"]
    assert not hub.sent


def test_shards_are_downloaded_with_their_index() -> None:
    shards = [f"unet/diffusion_pytorch_model{v}-0000{i}-of-00002.safetensors" for v in ("", ".fp16") for i in (1, 2)]
    indices = [f"unet/diffusion_pytorch_model.safetensors.index{variant}.json" for variant in ("", ".fp16")]
    names = ["model_index.json", *shards, *indices]
    assert set(wanted_files(names, "a/b", half=False)) == {"model_index.json", *shards[:2], indices[0]}
    assert set(wanted_files(names, "a/b", half=True)) == {"model_index.json", *shards[2:], indices[1]}


def test_pickles_beside_safetensors_of_another_component_are_refused() -> None:
    with pytest.raises(UnsafeFile, match="text_encoder_2"):
        wanted_files(
            ["unet/diffusion_pytorch_model.safetensors", "text_encoder_2/pytorch_model.bin"], "a/b", half=False
        )


@pytest.mark.parametrize(
    ("name", "is_id"), [("a/b", True), ("a/b@v1/x", True), ("a", False), ("/a/b", False), ("a/b/c", False)]
)
def test_hub_ids_are_distinguished_from_paths(name: str, is_id: bool) -> None:
    assert bool(HUB_ID.match(name)) == is_id
