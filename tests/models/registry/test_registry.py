"""Versions and aliases, on both databases."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.models.registry.files import write_lora, write_vae

from safelight.errors import InvalidRequest, UnknownVersion
from safelight.models.checkpoints.digest import digest_model, file_sum, read_sums
from safelight.models.checkpoints.families import describe
from safelight.models.registry.registry import Registry
from safelight.models.registry.version import Licence, Lineage, Parent

# Versions


def test_a_file_becomes_a_version_that_is_a_copy(registry: Registry, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "ink.safetensors")
    version = registry.add(file, by="joe")
    assert (version.reference, version.kind, version.base) == ("ink@1", "lora", "sd1")
    assert (version.digest, version.added_by, version.source) == (file_sum(file), "joe", str(file))
    content = file.read_bytes()
    file.write_bytes(b"another now")
    assert version.path.read_bytes() == content
    assert registry.resolve("ink@1") == registry.resolve("ink") == version


def test_the_same_content_is_the_same_version_and_other_content_the_next(registry: Registry, tmp_path: Path) -> None:
    first = registry.add(write_lora(tmp_path / "ink.safetensors"))
    assert registry.add(tmp_path / "ink.safetensors") == first
    second = registry.add(write_lora(tmp_path / "ink.safetensors", seed=2))
    assert [version.reference for version in registry.versions("ink")] == ["ink@1", "ink@2"]
    assert registry.resolve("ink") == second
    twin = registry.add(first.path, name="quill")
    assert (twin.reference, twin.path) == ("quill@1", first.path), "one copy on the disk serves both names"


def test_a_folder_has_the_digest_that_specs_pin_and_other_files_are_not_copied(
    registry: Registry, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "My model (v2)"
    shutil.copytree(checkpoint("sd1"), folder)
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "unet" / "old.ckpt").write_bytes(b"a pickle")
    version = registry.add(folder)
    assert (version.name, version.kind, version.base) == ("My-model-v2", "checkpoint", "sd1")
    assert version.digest == digest_model(describe(folder)) == digest_model(describe(version.path))
    assert (version.path / "LICENSE.txt").is_file()
    assert not list(version.path.rglob("*.ckpt"))


def test_a_version_need_not_be_hashed_again_when_it_is_used(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(write_lora(tmp_path / "ink.safetensors"))
    assert version.digest in read_sums(registry.home / "cache" / "sums.json").values()


def test_files_can_be_registered_in_place(registry: Registry, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "ink.safetensors")
    version = registry.add(file, in_place=True)
    assert (version.path, version.in_place, version.digest) == (file, True, file_sum(file))
    registry.remove("ink@1")
    assert file.is_file()


def test_the_source_of_a_version_is_recorded(registry: Registry, tmp_path: Path) -> None:
    parent = registry.add(write_lora(tmp_path / "ink.safetensors"))
    lineage = Lineage(
        parents=(parent.parent(), Parent(name="mini", digest="0" * 64)),
        dataset_digest="1" * 64,
        recipe={"kind": "lora", "rank": 8, "rate": 1e-4},
        code_version="0.1.0",
        metrics={"clip": 0.31, "by prompt": {"an apple": 0.4}},
    )
    registry.add(write_lora(tmp_path / "ink.safetensors", seed=2), lineage=lineage)
    assert registry.resolve("ink@2").lineage == lineage
    assert registry.resolve("ink@2").lineage.parents[0] == Parent(name="ink@1", digest=parent.digest)


def test_a_licence_is_recorded_now_or_later(registry: Registry, tmp_path: Path) -> None:
    terms = Licence(id="own", restrictions=("For our shop.",))
    assert registry.add(write_lora(tmp_path / "ink.safetensors"), licence=terms).licence == terms
    other = Licence(id="mit")
    assert registry.set_licence("ink@1", other).licence == other
    assert registry.resolve("ink").licence == other


@pytest.mark.parametrize(
    "name", ["", "..", "../ink", "a/b", "a b", "ink@2", ".ink", "x" * 101, "a\0b", "ink.safetensors"]
)
def test_a_name_is_a_plain_word(registry: Registry, tmp_path: Path, name: str) -> None:
    file = write_lora(tmp_path / "file.safetensors")
    with pytest.raises(InvalidRequest, match="is not a valid name"):
        registry.add(file, name=name or " ")
    assert registry.versions() == []


def test_a_name_has_one_kind_and_is_either_versions_or_an_alias(registry: Registry, tmp_path: Path) -> None:
    registry.add(write_lora(tmp_path / "ink.safetensors"))
    with pytest.raises(InvalidRequest, match="ink is the name of a lora, but this is a vae"):
        registry.add(write_vae(tmp_path / "vae.safetensors"), name="ink")
    with pytest.raises(InvalidRequest, match="'mini' is the embedded model"):
        registry.add(write_vae(tmp_path / "vae.safetensors"), name="mini")
    write_lora(registry.home / "loras" / "quill.safetensors")
    with pytest.raises(InvalidRequest, match="has the name 'quill' already"):
        registry.add(write_lora(tmp_path / "quill.safetensors"))


def test_a_file_of_another_kind_than_given_is_refused(registry: Registry, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "ink.safetensors")
    with pytest.raises(InvalidRequest, match="is a lora for Stable Diffusion 1, not a vae"):
        registry.add(file, kind="vae")
    with pytest.raises(InvalidRequest, match="no kind 'loar'"):
        registry.add(file, kind="loar")  # pyright: ignore[reportArgumentType]


def test_a_file_with_another_sha256_than_given_is_refused(registry: Registry, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "ink.safetensors")
    with pytest.raises(InvalidRequest, match="not the file you mean"):
        registry.add(file, sha256="0" * 64)
    assert registry.add(file, sha256=file_sum(file).upper()).number == 1


# Removing


def test_a_removed_versions_files_are_deleted_and_its_row_stays(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(write_lora(tmp_path / "ink.safetensors"))
    registry.remove("ink@1")
    assert not version.path.exists()
    assert registry.resolve("ink@1").removed is not None
    assert (registry.versions(), len(registry.versions(removed=True))) == ([], 1)
    with pytest.raises(UnknownVersion):
        registry.resolve("ink")
    assert registry.add(tmp_path / "ink.safetensors").reference == "ink@2", "a number is never given twice"


def test_files_stay_as_long_as_any_name_refers_to_them(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(write_lora(tmp_path / "ink.safetensors"))
    registry.add(tmp_path / "ink.safetensors", name="quill")
    registry.remove("ink")
    assert version.path.is_file()
    registry.remove("quill")
    assert not version.path.exists()


def test_a_version_with_an_alias_is_removed_only_by_force(registry: Registry, tmp_path: Path) -> None:
    registry.add(write_lora(tmp_path / "ink.safetensors"))
    registry.point("ink", "production", 1)
    with pytest.raises(InvalidRequest, match="ink@production points to ink@1"):
        registry.remove("ink@1")
    registry.remove("ink@1", force=True, by="joe")
    with pytest.raises(UnknownVersion):
        registry.resolve("ink@production")
    assert registry.history("ink", "production")[0].reason == "ink@1 was removed"


# Aliases


def test_an_alias_records_every_move(registry: Registry, tmp_path: Path) -> None:
    for seed in (1, 2):
        registry.add(write_lora(tmp_path / "ink.safetensors", seed))
    registry.point("ink", "production", 1, reason="first", by="joe")
    turn = registry.point("ink", "production", "ink@2", reason="sharper", by="ann")
    assert (turn.to, turn.previous, turn.by, turn.reason) == ("ink@2", "ink@1", "ann", "sharper")
    assert registry.resolve("ink@production").number == 2
    rollback = registry.history("ink", "production")[0].previous
    assert rollback is not None
    registry.point("ink", "production", rollback, reason="blurred")
    assert registry.resolve("ink@production").number == 1
    assert [turn.to for turn in registry.history("ink", "production")] == ["ink@1", "ink@2", "ink@1"]
    registry.unpoint("ink", "production")
    assert registry.aliases() == {}
    assert len(registry.history("ink", "production")) == 4


def test_an_alias_of_an_alias_points_to_its_version_unless_it_follows(registry: Registry, tmp_path: Path) -> None:
    for seed in (1, 2):
        registry.add(write_lora(tmp_path / "ink.safetensors", seed))
    registry.point("ink", "candidate", 1)
    registry.point("ink", "production", "ink@candidate")
    registry.point("house", "", "ink@candidate", follow=True)
    registry.point("ink", "candidate", 2)
    assert registry.resolve("ink@production").number == 1
    assert registry.resolve("house").number == 2
    assert registry.aliases() == {"house": "ink@candidate", "ink@candidate": "ink@2", "ink@production": "ink@1"}


def test_aliases_cannot_form_a_cycle(registry: Registry, tmp_path: Path) -> None:
    registry.add(write_lora(tmp_path / "ink.safetensors"))
    registry.point("ink", "a", 1)
    registry.point("ink", "b", "ink@a", follow=True)
    registry.point("ink", "c", "ink@b", follow=True)
    with pytest.raises(InvalidRequest, match="ink@a -> ink@c -> ink@b -> ink@a"):
        registry.point("ink", "a", "ink@c", follow=True)
    with pytest.raises(InvalidRequest, match="ink@a -> ink@a"):
        registry.point("ink", "a", "ink@a", follow=True)
    assert registry.resolve("ink@c").number == 1


@pytest.mark.parametrize("text", ["ink@", "ink@0", "ink@-1", "ink@a b", "@a", "a/b@1", "ink@production@2", "ink@1.5"])
def test_an_invalid_reference_is_refused_with_the_valid_forms(registry: Registry, text: str) -> None:
    with pytest.raises(InvalidRequest, match="use NAME, NAME@3 or NAME@production"):
        registry.resolve(text)


def test_an_unknown_reference_suggests_the_nearest(registry: Registry, tmp_path: Path) -> None:
    registry.add(write_lora(tmp_path / "ink.safetensors"))
    registry.point("ink", "production", 1)
    with pytest.raises(UnknownVersion, match="did you mean 'ink@production'"):
        registry.resolve("ink@prodction")
    with pytest.raises(UnknownVersion):
        registry.point("ink", "production", 7)


def test_an_alias_cannot_be_a_number_or_hide_a_model(registry: Registry, tmp_path: Path) -> None:
    registry.add(write_lora(tmp_path / "ink.safetensors"))
    with pytest.raises(InvalidRequest, match="ink@2 is a version; an alias"):
        registry.point("ink", "2", 1)
    with pytest.raises(InvalidRequest, match="has versions of its own"):
        registry.point("ink", "", "ink@1")
    registry.point("house", "", "ink@1")
    with pytest.raises(InvalidRequest, match="house is an alias"):
        registry.add(tmp_path / "ink.safetensors", name="house")
