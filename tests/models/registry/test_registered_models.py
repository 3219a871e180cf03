"""Versions by name wherever a model, a LoRA or an embedding may be named; and what it costs where there are none."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lora_files import write_kohya
from tests.models.embeddings import write_a1111
from tests.tiny_models import load

from safelight.errors import CorruptModel, InvalidRequest, UnknownModel
from safelight.models.adapters.lora_effect import LoraEffect
from safelight.models.registry.registered_models import open_catalogue
from safelight.models.registry.registry import Registry, open_registry
from safelight.resolve.resolve import resolve
from safelight.settings import Settings
from safelight.spec import Draft
from safelight.studio import Studio, open_studio


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, device="cpu")


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    with open_registry(settings) as registry:
        yield registry


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    with open_studio(settings) as studio:
        yield studio


@pytest.fixture
def brand(checkpoint: Callable[[str], Path], tmp_path: Path, registry: Registry) -> Path:
    """A folder of which `brand@1` was made; `again` makes it another model."""
    folder = shutil.copytree(checkpoint("sd1"), tmp_path / "brand")
    registry.add(folder)
    return folder


def again(folder: Path, *, steps: int) -> Path:
    (folder / "safelight.json").write_text(f'{{"defaults": {{"steps": {steps}}}}}')
    return folder


def completed(studio: Studio, prompt: str = "an apple", **wishes: Any) -> Any:
    return asyncio.run(resolve(Draft.model_validate({"prompt": prompt, "model": "brand"} | wishes), studio))


def test_a_running_studio_knows_a_new_version_and_a_moved_alias_at_once(
    studio: Studio, registry: Registry, brand: Path
) -> None:
    registry.point("brand", "production", 1)
    assert studio.models.catalogue.names() == ["mini", "brand", "brand@production"]
    first = completed(studio, model="brand@production")
    registry.add(again(brand, steps=7))
    assert completed(studio).steps == 7, "the name alone is its newest version"
    assert completed(studio, model="brand@production").model_digest == first.model_digest
    registry.point("brand", "production", 2, reason="better")
    second = completed(studio, model="brand@production")
    assert (second.steps, second.model_digest) == (7, registry.resolve("brand@2").digest)
    assert completed(studio, model="brand@1").model_digest == first.model_digest


def test_a_job_accepted_before_an_alias_moved_uses_the_old_version(
    studio: Studio, registry: Registry, brand: Path
) -> None:
    registry.point("brand", "production", 1)
    spec = completed(studio, model="brand@production")
    registry.add(again(brand, steps=7))
    registry.point("brand", "production", 2)
    assert studio.models.get(spec.model, spec.model_digest).digest == spec.model_digest
    registry.remove("brand@1")
    studio.models.loaded.clear()
    with pytest.raises(InvalidRequest, match="in the spec: the picture would differ"):
        studio.models.get(spec.model, spec.model_digest)


def test_loras_are_named_by_version_in_fields_and_tags(
    studio: Studio, registry: Registry, brand: Path, tmp_path: Path
) -> None:
    model = load(brand)
    digests = [registry.add(write_kohya(tmp_path / "ink.safetensors", model, seed=seed)).digest for seed in (1, 2)]
    registry.point("ink", "house", 1)
    spec = completed(studio, "an apple <lora:ink@house:0.8> <lora:ink:0.5>", loras=[{"name": "ink@2"}])
    assert [(use.name, use.digest) for use in spec.loras] == [
        ("ink@2", digests[1]),
        ("ink@house", digests[0]),
        ("ink", digests[1]),
    ]
    registry.point("ink", "house", 2)
    active = LoraEffect(studio.models.catalogue).load_all(spec.loras, studio.models.get(spec.model, spec.model_digest))
    assert [one.lora.digest for one in active] == [digests[1], digests[0], digests[1]]


def test_embeddings_are_named_by_version_in_prompts(
    studio: Studio, registry: Registry, brand: Path, tmp_path: Path
) -> None:
    digests = [
        registry.add(write_a1111(tmp_path / "my-cat.safetensors", seed=s), kind="embedding").digest for s in (1, 2)
    ]
    registry.point("my-cat", "old", 1)
    spec = completed(studio, "my-cat, my-cat@old")
    assert {one.name: one.digest for one in spec.embeddings} == {"my-cat": digests[1], "my-cat@old": digests[0]}
    assert completed(studio, "my-catalogue").embeddings == ()


def test_a_misspelt_version_suggests_the_nearest(settings: Settings, registry: Registry, brand: Path) -> None:
    registry.point("brand", "production", 1)
    with pytest.raises(UnknownModel, match="did you mean 'brand@production'"):
        open_catalogue(settings).find("brand@prodction")
    with pytest.raises(UnknownModel):
        open_catalogue(settings).find("brand@7")


def test_a_version_whose_files_changed_is_not_drawn_with(settings: Settings, registry: Registry, brand: Path) -> None:
    version = registry.resolve("brand")
    config = version.path / "unet" / "config.json"
    before = config.read_bytes()
    config.write_bytes(before + b" ")
    with pytest.raises(CorruptModel, match="brand@1 was changed since it was added"):
        open_catalogue(settings).find("brand")
    config.unlink()
    with pytest.raises(CorruptModel, match="files are missing in"):
        open_catalogue(settings).pinned("brand", version.digest, "checkpoint")
    config.write_bytes(before)
    assert open_catalogue(settings).find("brand@1") == version.path


def test_an_alias_that_follows_a_removed_one_does_not_hide_others(
    settings: Settings, registry: Registry, brand: Path
) -> None:
    registry.point("brand", "production", 1)
    registry.point("house", "", "brand@production", follow=True)
    registry.unpoint("brand", "production")
    assert open_catalogue(settings).names() == ["mini", "brand"]
    with pytest.raises(UnknownModel, match="no model named 'house'"):
        open_catalogue(settings).find("house")


def test_local_folders_come_first_and_a_version_is_still_found_by_number(
    settings: Settings, registry: Registry, brand: Path
) -> None:
    own = shutil.copytree(brand, settings.models / "brand")
    catalogue = open_catalogue(settings)
    assert catalogue.find("brand") == own
    assert catalogue.find("brand@1") == registry.resolve("brand@1").path


def test_a_database_older_than_the_registry_works(settings: Settings) -> None:
    import sqlite3

    with sqlite3.connect(settings.home / "safelight.db") as connection:
        connection.execute("CREATE TABLE jobs (id TEXT)")
    connection.close()
    assert open_catalogue(settings).names() == ["mini"]


@pytest.mark.parametrize("database", [False, True])
def test_without_versions_a_lookup_imports_no_sqlalchemy(settings: Settings, database: bool) -> None:
    if database:
        with open_registry(settings):
            pass
    code = """
import sys
from safelight.models.registry.registered_models import open_catalogue
from safelight.settings import Settings
catalogue = open_catalogue(Settings.from_environment())
assert catalogue.find("mini") and not catalogue.names("embedding") and not catalogue.names("lora")
assert not {"sqlalchemy", "alembic", "httpx", "torch"} & sys.modules.keys(), "these take long to import"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
