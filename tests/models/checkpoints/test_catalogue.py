import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from safelight.errors import UnknownModel, UnsafeFile
from safelight.models.checkpoints import catalogue as module
from safelight.models.checkpoints.catalogue import MINI, Catalogue


@pytest.fixture
def catalogue(checkpoint: Callable[[str], Path], tmp_path: Path) -> Catalogue:
    shutil.copytree(checkpoint("sd1"), tmp_path / "models" / "mine")
    (tmp_path / "models" / "not-a-model").mkdir()
    return Catalogue(tmp_path)


def test_the_embedded_model_and_local_models_are_listed(catalogue: Catalogue) -> None:
    assert catalogue.names() == ["mini", "mine"]
    assert Catalogue(catalogue.home / "nowhere").names() == ["mini"]


def test_a_name_is_resolved_to_its_folder(catalogue: Catalogue) -> None:
    assert catalogue.find("mini") == MINI
    assert catalogue.find("mine") == catalogue.folder() / "mine"
    assert catalogue.find(str(catalogue.folder() / "mine")) == (catalogue.folder() / "mine").resolve()


def test_a_relative_folder_is_found_from_here(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(catalogue.folder())
    assert catalogue.find("./mine") == (catalogue.folder() / "mine").resolve()


def test_the_hub_is_queried_only_for_models_that_are_not_local(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "fetch", lambda name, *, half: asked.append(name) or Path("hub"))
    monkeypatch.chdir(catalogue.folder().parent)
    here = f"{catalogue.folder().name}/mine"
    assert catalogue.find(here) == (catalogue.folder() / "mine").resolve()
    assert catalogue.find("org/name@v1", half=True) == Path("hub")
    assert asked == ["org/name@v1"]


def test_a_folder_that_is_no_model_is_refused_with_the_reason(catalogue: Catalogue) -> None:
    with pytest.raises(UnknownModel, match=r"a folder without model_index\.json"):
        catalogue.find(str(catalogue.folder() / "not-a-model"))


@pytest.mark.parametrize(
    "name", ["", "nothing", "../..", "mine/../../secret.ckpt", "a" * 10_000, "nul\0", "a/b/c", "~"]
)
def test_any_other_name_is_unknown(
    catalogue: Catalogue, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UnknownModel) as caught:
        catalogue.find(name)
    assert len(str(caught.value)) < 500


def test_single_files_are_known_by_their_stems(catalogue: Catalogue) -> None:
    (catalogue.folder() / "checkpoints").mkdir()
    for place in ("dream.safetensors", "checkpoints/night.safetensors", "mine.safetensors"):
        (catalogue.folder() / place).touch()
    assert catalogue.names() == ["mini", "dream", "mine", "night"]
    assert catalogue.find("dream") == catalogue.find("dream.safetensors") == catalogue.folder() / "dream.safetensors"
    assert catalogue.find("mine") == catalogue.folder() / "mine", "of a folder and a file, the folder"
    assert catalogue.find(str(catalogue.folder() / "checkpoints" / "night.safetensors")).name == "night.safetensors"


def test_a_pickle_is_refused_with_the_command_that_converts_it(catalogue: Catalogue) -> None:
    (catalogue.folder() / "old.ckpt").touch()
    with pytest.raises(UnsafeFile, match=r"safelight models convert \S*old\.ckpt \S*old\.safetensors"):
        catalogue.find(str(catalogue.folder() / "old.ckpt"))


def test_files_with_other_suffixes_are_not_read(catalogue: Catalogue) -> None:
    (catalogue.folder() / "secret.txt").touch()
    with pytest.raises(UnknownModel):
        catalogue.find(str(catalogue.folder() / "secret.txt"))
