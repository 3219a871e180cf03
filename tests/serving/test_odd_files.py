"""Whatever lies in the folders of models: pipes, links in circles, links to nowhere, folders, damaged files. Each is
listed, passed over or refused by name; no answer waits for it, and none says where it lies."""

import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from safetensors.torch import save_file
from tests.serving.conftest import serving, settings_in
from torch import zeros

from safelight.models.checkpoints.catalogue import FOLDERS

SMALL = {"prompt": "a red apple", "seed": 7, "steps": 1, "width": 64, "height": 64}
KINDS = ("pipe", "loop", "there", "broken", "folder", "empty", "pickle", "cut", "noise")
LISTS = (
    "/v1/models", "/sdapi/v1/sd-models", "/sdapi/v1/loras", "/sdapi/v1/embeddings", "/sdapi/v1/sd-vae",
    "/sdapi/v1/upscalers", "/sdapi/v1/options", "/controlnet/model_list", "/controlnet/control_types",
)  # fmt: skip


def fill(folder: Path, suffix: str = ".safetensors") -> None:
    """One of each, by its kind's name."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / f"pipe{suffix}")
    for name, target in {"loop": "loop", "there": "back", "back": "there", "broken": "nowhere"}.items():
        (folder / f"{name}{suffix}").symlink_to(f"{target}{suffix}")
    (folder / f"folder{suffix}").mkdir()
    (folder / f"empty{suffix}").write_bytes(b"")
    (folder / f"pickle{suffix}").write_bytes(b"\x80\x02}q\x00.")
    save_file({"a": zeros(64)}, folder / "whole")
    (folder / f"cut{suffix}").write_bytes((folder / "whole").read_bytes()[:-8])
    (folder / "whole").rename(folder / f"noise{suffix}")


def fill_with_folders(folder: Path, index: str) -> None:
    """Diffusers' folders whose configuration is one of those."""
    fill(folder / "made", ".json")
    for odd in (folder / "made").iterdir():
        inside = folder / f"of-{odd.stem}"
        inside.mkdir()
        odd.rename(inside / index)
    (folder / "made").rmdir()
    for name in ("loop", "there", "back"):
        (folder / f"of-{name}" / index).unlink()
        (folder / f"of-{name}" / index).symlink_to(index)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("odd files")  # with a space, as where macOS keeps a user's files
    for name in (*FOLDERS.values(), "text_encoders", "image-encoders", "depth-models"):
        fill(home / name)
    for name in ("models", "controlnets", "t2i-adapters", "vaes", "text_encoders", "image-encoders", "depth-models"):
        fill_with_folders(home / name, "model_index.json" if name == "models" else "config.json")
    fill(home / "wildcards", ".txt")
    fill(home / "wildcards" / "lists", ".yaml")
    linked = tmp_path_factory.mktemp("linked")
    for name in ("Lora", "VAE", "ControlNet", "embeddings", "anywhere"):
        fill(linked / "models" / name)
    (home / "links.json").write_text(json.dumps({"folders": [str(linked)]}))
    return home


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[httpx.Client]:
    with serving(settings_in(home)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def require_discreet(text: str, home: Path) -> None:
    assert str(home) not in text, text
    assert str(home.parent) not in text, text


@pytest.mark.parametrize("path", LISTS)
def test_lists_are_answered(client: httpx.Client, home: Path, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    require_discreet(answer.text, home)


def bodies(kind: str) -> Iterator[dict[str, Any]]:
    """Every way to name a file, a folder or an image."""
    asset = {"image": "0" * 64}
    for name in (kind, f"of-{kind}"):
        yield {"model": name}
        yield {"vae": name}
        yield {"text_encoder": name}
        yield {"refiner": name}
        yield {"controls": [{"model": name, **asset}]}
        yield {"picture_prompts": [{"model": name, **asset}]}
    yield {"loras": [{"name": kind}]}
    yield {"prompt": f"an apple <lora:{kind}:1>"}
    yield {"prompt": f"an apple __{kind}__", "expand": "wildcards"}
    yield {"prompt": f"an apple __lists/{kind}__", "expand": "combinatorial"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_odd_file_is_refused_by_name(client: httpx.Client, home: Path, kind: str) -> None:
    for fields in bodies(kind):
        answer = client.post("/v1/jobs", json=SMALL | fields)
        # A text file may hold anything, and what is no safetensors may be a list of words.
        words = "expand" in fields and kind in ("pickle", "cut", "noise")
        assert 400 <= answer.status_code < 500 or (words and answer.status_code == 202), (fields, answer.text)
        require_discreet(answer.text, home)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_that_cannot_be_read_is_refused_where_a_prompt_names_it(
    client: httpx.Client, home: Path, kind: str
) -> None:
    answer = client.post("/v1/jobs", json=SMALL | {"prompt": f"an apple in the style of {kind}"})
    assert 400 <= answer.status_code < 500, answer.text
    require_discreet(answer.text, home)


@pytest.mark.parametrize("name", ["x" * 250, "x" * 256, "x" * 5000, "a/" * 200 + "b", "..", "/etc/passwd", "a/../b"])
def test_a_wildcard_of_any_name_is_answered(client: httpx.Client, home: Path, name: str) -> None:
    answer = client.post("/v1/jobs", json=SMALL | {"prompt": f"an apple __{name}__", "expand": "wildcards"})
    assert answer.status_code == 400, answer.text
    require_discreet(answer.text, home)


def test_other_routes_reveal_no_more(client: httpx.Client, home: Path) -> None:
    for kind in KINDS:
        for method, path, body in (
            ("POST", "/sdapi/v1/txt2img", SMALL | {"prompt": f"<lora:{kind}:1>"}),
            ("POST", "/sdapi/v1/txt2img", SMALL | {"override_settings": {"sd_model_checkpoint": kind}}),
            ("POST", "/v1/images/generations", {"prompt": "a", "model": kind, "size": "64x64"}),
            ("POST", "/v1/upscales", {"init": "0" * 64, "method": kind}),
            ("GET", f"/v1/models/of-{kind}x", None),
        ):
            answer = client.request(method, path, json=body)
            assert 400 <= answer.status_code < 500, (path, body, answer.text)
            require_discreet(answer.text, home)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unreadable_upscaler_is_refused(client: httpx.Client, home: Path, kind: str) -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    kept = client.post("/v1/files", files={"file": ("x.png", file.getvalue())}).raise_for_status().json()["id"]
    answer = client.post("/v1/upscales", json={"init": kept, "method": kind})
    assert 400 <= answer.status_code < 500, answer.text
    require_discreet(answer.text, home)
