import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safelight.assets.picture_name import picture_name
from safelight.assets.store import AssetStore
from safelight.errors import CorruptAsset, StorageFailed, UnknownAsset
from safelight.imaging.open_image import open_image

DATA = b"picture" * 100
DIGEST = hashlib.sha256(DATA).hexdigest()
needs_mount = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root on Linux")


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> AssetStore:
    return AssetStore(tmp_path / "blobs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False)
    if done.returncode:
        pytest.skip("this machine does not let us mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_picture_is_named_by_its_sha256(store: AssetStore) -> None:
    asset = store.put(DATA, ".png")
    assert asset.id == DIGEST
    assert asset.path == store.folder / DIGEST[:2] / f"{DIGEST}.png"
    assert asset.size_bytes == len(DATA)
    assert store.path_of(DIGEST) == asset.path
    assert store.read(DIGEST) == DATA


def test_the_same_bytes_are_one_file(store: AssetStore) -> None:
    assert store.put(DATA, ".png") == store.put(DATA, ".png") == store.put(DATA, ".webp")
    assert len(files_in(store.folder)) == 1


def test_many_threads_may_store_the_same_picture(store: AssetStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = {asset.path for asset in pool.map(lambda _: store.put(DATA, ".png"), range(64))}
    assert list(paths) == files_in(store.folder)


def test_a_damaged_file_is_an_error_and_is_mended_by_storing_again(store: AssetStore) -> None:
    path = store.put(DATA, ".png").path
    path.write_bytes(DATA[:-1])
    with pytest.raises(CorruptAsset, match="damaged or changed"):
        store.read(DIGEST)
    store.put(DATA, ".png")
    assert store.read(DIGEST) == DATA


@pytest.mark.parametrize("digest", ["0" * 64, "", "../../etc/passwd", DIGEST.upper(), DIGEST + "\n", "*", "\0" * 64])
def test_an_id_that_was_not_stored_is_unknown(store: AssetStore, digest: str) -> None:
    store.put(DATA, ".png")
    with pytest.raises(UnknownAsset, match="64 hex digits"):
        store.read(digest)


def test_an_input_image_is_stored_without_loss(store: AssetStore) -> None:
    picture = Image.effect_noise((40, 30), 50).convert("RGB")
    data = store.read(store.put_image(picture))
    assert open_image(data, max_pixels=10**6, max_file_bytes=10**6).tobytes() == picture.tobytes()


def test_a_file_in_place_of_the_folder_is_reported(store: AssetStore) -> None:
    store.folder.write_text("not a folder")
    with pytest.raises(StorageFailed, match=r"cannot write .* choose a folder"):
        store.put(DATA, ".png")


@needs_mount
def test_a_full_disk_is_reported_and_leaves_no_partial_file(small_disk: Path, tmp_path: Path) -> None:
    store = AssetStore(small_disk / "blobs")
    small = store.put(DATA, ".png")
    with pytest.raises(StorageFailed, match="No space left on device; free some space"):
        store.put(os.urandom(400_000), ".png")
    assert files_in(small_disk) == [small.path]
    elsewhere = AssetStore(tmp_path / "roomy")
    large = elsewhere.put(os.urandom(400_000), ".png")
    with pytest.raises(StorageFailed, match="No space left on device"):
        elsewhere.copy_to(large, small_disk / "large.png")
    assert files_in(small_disk) == [small.path]
    assert store.read(small.id) == DATA


@needs_mount
def test_stored_images_can_be_read_from_a_read_only_disk(small_disk: Path) -> None:
    store = AssetStore(small_disk / "blobs")
    store.put(DATA, ".png")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageFailed, match="Read-only file system"):
        store.put(b"another", ".png")
    assert store.read(DIGEST) == DATA
    assert store.put(DATA, ".png").id == DIGEST


def test_a_copy_never_replaces_another_file(store: AssetStore, tmp_path: Path) -> None:
    asset = store.put(DATA, ".png")
    wanted = tmp_path / "new" / "a-red-apple-1234.png"
    assert store.copy_to(asset, wanted) == wanted
    assert store.copy_to(asset, wanted) == wanted, "the same picture under the same name is already there"
    wanted.write_bytes(b"someone's own")
    assert store.copy_to(asset, wanted) == wanted.with_name("a-red-apple-1234-2.png")
    assert wanted.read_bytes() == b"someone's own"
    assert [path.name for path in files_in(wanted.parent)] == ["a-red-apple-1234-2.png", "a-red-apple-1234.png"]


def test_copies_made_at_once_get_a_name_each(store: AssetStore, tmp_path: Path) -> None:
    assets = [store.put(bytes([number]) * 1000, ".png") for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda asset: store.copy_to(asset, tmp_path / "out" / "a.png"), assets))
    assert [path.read_bytes() for path in paths] == [store.read(asset.id) for asset in assets]
    assert len(files_in(tmp_path / "out")) == 16


def test_a_damaged_picture_is_not_copied(store: AssetStore, tmp_path: Path) -> None:
    asset = store.put(DATA, ".png")
    asset.path.write_bytes(b"other")
    with pytest.raises(CorruptAsset):
        store.copy_to(asset, tmp_path / "out" / "a.png")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("prompt", "name"), [
    ("A red apple, (shiny:1.2)!", "a-red-apple-shiny-1-2-7"),
    ("../../etc/passwd\0", "etc-passwd-7"),
    ("--out /x", "out-x-7"),
    ("CON", "con-7"),
    ("  🍎 ", "picture-7"),
    ("", "picture-7"),
    ("红苹果 яблоко", "红苹果-яблоко-7"),
    ("word " * 100, "-".join(["word"] * 12) + "-7"),
])  # fmt: skip
def test_names_are_made_of_the_prompts_words(prompt: str, name: str) -> None:
    assert picture_name(prompt, 7) == name


@given(st.text(st.characters(exclude_categories=[])), st.integers(0, 2**63 - 1))
def test_no_prompt_makes_a_dangerous_name(prompt: str, seed: int) -> None:
    name = picture_name(prompt, seed)
    assert len(name.encode()) <= 80
    assert Path(name).name == name
    assert not name.startswith(("-", "."))
    assert not set(name) & set('/\\:*?"<>|\0\n ')
