"""Hostile files, full disks, processes that are killed and processes that compete."""

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.models.registry.file_server import Site, serve
from tests.models.registry.files import write_lora
from tests.patience import PATIENCE_S, wait_until

from safelight.errors import CorruptModel, InvalidRequest, StorageFailed, UnsafeFile
from safelight.models.checkpoints.digest import file_sum
from safelight.models.registry import storage as module
from safelight.models.registry.registry import Registry
from safelight.models.registry.verify import clean, leftovers, verify


@pytest.fixture
def database_url(home: Path) -> str:
    """The one that a process of its own finds."""
    return f"sqlite:///{home / 'safelight.db'}"


def empty(registry: Registry) -> bool:
    return registry.versions(removed=True) == [] and not list(registry.storage.folder.glob("[!.]*"))


# Files


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F16", "shape": [(end - begin) // 2], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (safetensors(b"{}", length=2**62), CorruptModel, "not a safetensors file"),
        (safetensors(b" " * (33 * 2**20)), CorruptModel, "header of 33 MiB"),
        (safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, b"x" * 12), CorruptModel, "overlaps another"),
        (safetensors({"a": tensor(0, 8)}, b"x" * 4), CorruptModel, "is cut off"),
        (b"PK\x03\x04" + b"x" * 100, UnsafeFile, "is a pickle"),
        (safetensors({"a": tensor(0, 8)}, b"x" * 8), InvalidRequest, "no known kind of Stable Diffusion file"),
    ],
)
def test_a_refused_file_leaves_nothing_behind(
    registry: Registry, tmp_path: Path, content: bytes, error: type[Exception], message: str
) -> None:
    file = tmp_path / "evil.safetensors"
    file.write_bytes(content)
    with pytest.raises(error, match=message):
        registry.add(file)
    assert empty(registry)


def test_a_pickle_is_refused_with_the_command_that_converts_it(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").touch()
    with pytest.raises(UnsafeFile, match=r"safelight models convert .*old\.ckpt"):
        registry.add(tmp_path / "old.ckpt")


def test_a_folder_with_a_link_out_of_it_is_refused(
    registry: Registry, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("sd1"), tmp_path / "model")
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    (folder / "README.md").symlink_to(secret)
    with pytest.raises(UnsafeFile, match=r"README\.md is a link out of"):
        registry.add(folder)
    assert empty(registry)


@pytest.mark.parametrize("source", ["nowhere", "../nowhere.safetensors", "a\0b", "x" * 5000, "~nobody-here/x"])
def test_a_missing_source_is_reported(registry: Registry, source: str) -> None:
    with pytest.raises(InvalidRequest, match="no such file or folder"):
        registry.add(source)


# The disk


def test_too_little_disk_space_is_reported_before_copying(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**12, 10**12, 100)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageFailed, match=r"0\.00 are free; make room"):
        registry.add(write_lora(tmp_path / "ink.safetensors"))
    assert empty(registry)


def test_a_disk_that_fills_up_while_copying_leaves_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(StorageFailed, match="No space left on device; make room"):
        registry.add(write_lora(tmp_path / "ink.safetensors"))
    assert empty(registry)
    assert not list(registry.storage.folder.glob(".incoming-*"))


def test_changed_and_missing_files_are_found_and_adding_again_repairs_them(registry: Registry, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "ink.safetensors")
    version = registry.add(file)
    quill = registry.add(write_lora(tmp_path / "quill.safetensors", seed=2))
    assert [dict(checked.problems) for checked in verify(registry)] == [{}, {}]
    content = bytearray(version.path.read_bytes())
    content[-1] ^= 1
    version.path.write_bytes(content)
    quill.path.unlink()
    found = {checked.version.reference: dict(checked.problems) for checked in verify(registry)}
    assert found == {"ink@1": {"weights.safetensors": "changed"}, "quill@1": {"weights.safetensors": "missing"}}
    assert registry.add(file) == version
    assert [dict(checked.problems) for checked in verify(registry, ["ink"])] == [{}]


# Processes

ADD = """
import sys
from safelight.models.registry.registry import open_registry
from safelight.settings import Settings
with open_registry(Settings.from_environment()) as registry:
    for source in sys.argv[1:]:
        print(registry.add(source, name="ink", private=True).reference)
"""
STOPS_BEFORE_THE_ROW = """
import sys, time
from safelight.models.registry import registry as module
from safelight.settings import Settings
def insert(session, row):
    print("placed", flush=True)
    time.sleep(600)
module.insert = insert
with module.open_registry(Settings.from_environment()) as registry:
    registry.add(sys.argv[1], name="ink")
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def test_processes_can_add_versions_at_the_same_time(registry: Registry, tmp_path: Path) -> None:
    files = [write_lora(tmp_path / f"{seed}.safetensors", seed) for seed in range(4)]
    orders = (files, files[::-1], files)
    adding = [start(ADD, *order) for order in orders]
    for process in adding:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
    versions = registry.versions("ink")
    assert [version.number for version in versions] == [1, 2, 3, 4]
    assert {version.digest for version in versions} == {file_sum(file) for file in files}
    assert all(checked.problems == {} for checked in verify(registry))
    assert (leftovers(registry), list(registry.storage.folder.glob(".incoming-*"))) == ([], [])


def test_a_process_killed_during_a_download_leaves_only_what_the_next_resumes(
    registry: Registry, tmp_path: Path
) -> None:
    file = write_lora(tmp_path / "there.safetensors", width=200_000)  # half of it is beyond every buffer on the way
    with serve(Site(file.read_bytes(), stall=threading.Event())) as site:
        process = start(ADD, site.url)
        parts = partial(registry.storage.folder.glob, ".download-*.part")
        wait_until(lambda: any(part.stat().st_size > 10_000 for part in parts()))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert registry.versions(removed=True) == []
        assert list(registry.storage.folder.glob(".incoming-*"))
        assert site.stall
        site.stall.set()
        assert registry.add(site.url, name="ink", private=True).digest == file_sum(file)
        assert site.ranges[0] is None
        assert site.ranges[-1] is not None
    assert not list(registry.storage.folder.glob(".incoming-*"))


def test_a_process_that_is_killed_before_it_registers_leaves_no_version(registry: Registry, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "ink.safetensors")
    process = start(STOPS_BEFORE_THE_ROW, file)
    assert process.stdout
    assert process.stdout.readline() == "placed\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert registry.versions(removed=True) == []
    assert leftovers(registry) == [file_sum(file)]
    assert registry.add(file).reference == "ink@1"
    assert leftovers(registry) == []


def test_files_that_were_never_registered_can_be_removed(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(write_lora(tmp_path / "ink.safetensors"))
    (registry.storage.folder / ("0" * 64)).mkdir()
    assert clean(registry) == ["0" * 64]
    assert version.path.is_file()
