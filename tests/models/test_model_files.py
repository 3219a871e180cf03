from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safelight.errors import UnsafeFile
from safelight.models.digest import file_sum
from safelight.models.model_files import UnknownFile, find_file


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "loras").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "loras" / "pixel-art.safetensors")
    (tmp_path / "loras" / "old.pt").touch()
    return tmp_path


def test_a_file_is_found_by_its_stem_and_named_by_its_sha256(models: Path) -> None:
    path = models / "loras" / "pixel-art.safetensors"
    assert find_file(models, "lora", "pixel-art") == (path, file_sum(path))
    assert find_file(models, "lora", "pixel-art.safetensors")[0] == path


def test_the_nearest_name_is_suggested(models: Path) -> None:
    with pytest.raises(UnknownFile, match="no lora named 'pixelart'; did you mean 'pixel-art'"):
        find_file(models, "lora", "pixelart")
    with pytest.raises(UnknownFile, match="none is in"):
        find_file(models, "embedding", "x")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", "nul\0", "a" * 10_000])
def test_a_name_does_not_lead_out_of_its_folder(models: Path, name: str) -> None:
    with pytest.raises(UnknownFile) as caught:
        find_file(models, "lora", name)
    assert len(str(caught.value)) < 500


def test_a_pickle_is_refused_with_the_command_that_converts_it(models: Path) -> None:
    with pytest.raises(UnsafeFile, match=r"safelight models convert .*old\.pt .*old\.safetensors"):
        find_file(models, "lora", "old")


def test_a_link_that_leads_out_is_refused(models: Path) -> None:
    save_file({"a": torch.ones(1)}, models / "outside.safetensors")
    (models / "loras" / "link.safetensors").symlink_to(models / "outside.safetensors")
    with pytest.raises(UnsafeFile, match="leads out of"):
        find_file(models, "lora", "link")
