from collections.abc import Callable
from pathlib import Path

import pytest
from tests.lora_files import write_kohya

from safelight.errors import InvalidRequest, UnknownLora
from safelight.models.load import Model
from safelight.models.lora_folder import LoraFolder
from safelight.models.lora_shelf import LoraShelf
from safelight.spec import LoraWish

Models = Callable[[str], Model]


@pytest.fixture
def folder(tmp_path: Path, model: Models) -> LoraFolder:
    (tmp_path / "loras" / "styles").mkdir(parents=True)
    write_kohya(tmp_path / "loras" / "ink.safetensors", model("sd1"), seed=1)
    write_kohya(tmp_path / "loras" / "styles" / "water.colour.safetensors", model("sd1"), seed=2)
    return LoraFolder(tmp_path / "loras", sums=tmp_path / "sums.json")


def test_a_name_is_a_files_in_folders_of_any_depth(folder: LoraFolder) -> None:
    assert list(folder.paths()) == ["ink", "water.colour"]
    assert folder.find("water.colour")[0].parent.name == "styles"
    assert folder.find("ink.safetensors") == folder.find("ink")
    assert folder.find(str(folder.folder / "ink.safetensors"))[1] == folder.find("ink")[1]


@pytest.mark.parametrize("name", ["inc", "../loras/none.safetensors", "x" * 5000, "a\0b/x.safetensors", "styles"])
def test_an_unknown_name_is_told_the_nearest(folder: LoraFolder, name: str) -> None:
    with pytest.raises(UnknownLora, match="no LoRA named") as caught:
        folder.find(name)
    assert "lists 2" in str(caught.value)
    assert ("did you mean 'ink'" in str(caught.value)) == (name == "inc")


def test_strangers_may_not_name_paths(folder: LoraFolder) -> None:
    closed = LoraFolder(folder.folder, folder.sums, by_path=False)
    assert closed.find("ink")
    with pytest.raises(UnknownLora):
        closed.find(str(folder.folder / "ink.safetensors"))


def test_a_wish_is_pinned_and_another_file_of_that_name_is_refused(folder: LoraFolder, model: Models) -> None:
    use = folder.pin(LoraWish(name="ink", weight=0.5))
    assert (use.weight, use.digest) == (0.5, folder.find("ink")[1])
    write_kohya(folder.folder / "ink.safetensors", model("sd1"), seed=3, text=False)
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        folder.pin(use)
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        LoraShelf(folder).wear([use], model("sd1"))


def test_a_lora_is_loaded_once_until_its_room_is_needed(folder: LoraFolder, model: Models) -> None:
    shelf, ours = LoraShelf(folder), model("sd1")
    ink = folder.pin(LoraWish(name="ink"))
    [one], [again] = shelf.wear([ink], ours), shelf.wear([ink], ours)
    assert one.lora is again.lora
    shelf.need(ink, ours.digest, ours.placement).drop()
    assert not shelf.loaded
    assert shelf.wear([ink], ours)[0].lora is not one.lora
