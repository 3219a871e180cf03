from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lora_files import write_kohya

from safelight.errors import InvalidRequest, UnknownLora
from safelight.models.adapters.lora_effect import LoraEffect
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.digest import file_sum
from safelight.models.networks.load import Model
from safelight.spec import LoraRequest

Models = Callable[[str], Model]


@pytest.fixture
def catalogue(tmp_path: Path, model: Models) -> Catalogue:
    (tmp_path / "loras" / "styles").mkdir(parents=True)
    write_kohya(tmp_path / "loras" / "ink.safetensors", model("sd1"), seed=1)
    write_kohya(tmp_path / "loras" / "styles" / "water.colour.safetensors", model("sd1"), seed=2)
    return Catalogue(tmp_path)


def test_a_name_is_a_files_in_folders_of_any_depth(catalogue: Catalogue) -> None:
    assert catalogue.names("lora") == ["ink", "water.colour"]
    assert catalogue.find("water.colour", "lora").parent.name == "styles"
    ink = catalogue.find("ink", "lora")
    assert catalogue.find("ink.safetensors", "lora") == ink
    assert catalogue.find(str(ink), "lora") == ink.resolve()


@pytest.mark.parametrize("name", ["inc", "../loras/none.safetensors", "x" * 5000, "a\0b/x.safetensors", "styles"])
def test_an_unknown_name_is_told_the_nearest(catalogue: Catalogue, name: str) -> None:
    with pytest.raises(UnknownLora, match="no LoRA named") as caught:
        catalogue.find(name, "lora")
    assert "lists 2" in str(caught.value)
    assert ("did you mean 'ink'" in str(caught.value)) == (name == "inc")


def test_strangers_may_not_name_paths(catalogue: Catalogue) -> None:
    closed = replace(catalogue, listed_only=True)
    assert closed.find("ink", "lora")
    with pytest.raises(UnknownLora):
        closed.find(str(catalogue.folder("lora") / "ink.safetensors"), "lora")


def test_a_wish_is_pinned_and_another_file_of_that_name_is_refused(catalogue: Catalogue, model: Models) -> None:
    effect = LoraEffect(catalogue)
    use = effect.pin_one(LoraRequest(name="ink", weight=0.5))
    assert (use.weight, use.digest) == (0.5, file_sum(catalogue.find("ink", "lora")))
    write_kohya(catalogue.folder("lora") / "ink.safetensors", model("sd1"), seed=3, text=False)
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        effect.pin_one(use)
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        LoraEffect(catalogue).load_all([use], model("sd1"))


def test_a_lora_is_loaded_once_until_its_room_is_needed(catalogue: Catalogue, model: Models) -> None:
    effect, ours = LoraEffect(catalogue), model("sd1")
    ink = effect.pin_one(LoraRequest(name="ink"))
    [one], [again] = effect.load_all([ink], ours), effect.load_all([ink], ours)
    assert one.lora is again.lora
    effect.allocation(ink, ours.digest, ours.placement).drop()
    assert not effect.loaded
    assert effect.load_all([ink], ours)[0].lora is not one.lora
