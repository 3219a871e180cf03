import os
from collections.abc import Callable
from pathlib import Path

import pytest

from safelight.models.checkpoints import digest as module
from safelight.models.checkpoints.digest import digest_model, read_sums
from safelight.models.checkpoints.families import describe

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def test_the_digest_does_not_depend_on_where_the_folder_is(checkpoint: Callable[[str], Path], folder: Path) -> None:
    assert digest_model(describe(folder)) == digest_model(describe(checkpoint("sd1")))


@pytest.mark.parametrize(
    "name",
    [UNET, TEXT, "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "model_index.json"],
)
def test_one_byte_of_any_file_changes_the_digest(folder: Path, name: str) -> None:
    before = digest_model(describe(folder))
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert digest_model(describe(folder)) != before


@pytest.mark.parametrize(
    "name",
    ["README.md", "safety_checker/config.json", "unet/diffusion_pytorch_model.fp16.safetensors", "x.safetensors"],
)
def test_files_that_are_never_read_do_not_change_the_digest(folder: Path, name: str) -> None:
    """A second variant, downloaded for another machine, must not make old specs foreign."""
    before = digest_model(describe(folder))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"{}")
    assert digest_model(describe(folder)) == before


def test_safelights_settings_are_part_of_the_digest(folder: Path) -> None:
    before = digest_model(describe(folder))
    (folder / "safelight.json").write_text('{"defaults": {"steps": 7}}')
    assert digest_model(describe(folder)) != before


def test_sums_are_cached_by_size_and_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache" / "sums.json"
    hashed: list[Path] = []
    plain = module.file_sum
    monkeypatch.setattr(module, "file_sum", lambda path: hashed.append(path) or plain(path))
    first = digest_model(describe(folder), cache=cache)
    assert len(hashed) == len(read_sums(cache)) > 5
    hashed.clear()
    assert digest_model(describe(folder), cache=cache) == first
    assert not hashed
    os.utime(folder / UNET, ns=(1, 1))
    assert digest_model(describe(folder), cache=cache) == first
    assert hashed == [folder / UNET]


@pytest.mark.parametrize("content", ["{", "[]", "\0"])
def test_a_damaged_cache_of_sums_is_only_slow(folder: Path, tmp_path: Path, content: str) -> None:
    cache = tmp_path / "sums.json"
    cache.write_text(content)
    assert digest_model(describe(folder), cache=cache) == digest_model(describe(folder))


def test_a_cache_that_cannot_be_written_is_only_slow(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert digest_model(describe(folder), cache=tmp_path / "file" / "sums.json") == digest_model(describe(folder))
