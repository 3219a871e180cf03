"""Storage of the versions' files: SAFELIGHT_HOME/versions/DIGEST, written in a temporary folder and moved there.

.incoming-TOKEN/        files being added; their process holds the lock as long as it lives
.incoming-TOKEN.lock
.lock                   held while a folder and its row are changed together
DIGEST/                 the files of one version; a single file is named `weights.safetensors`
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from safelight.errors import CorruptModel, StorageFailed
from safelight.regular_file import open_regular

INCOMING = ".incoming-"
CHUNK = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Storage:
    folder: Path

    def path_of(self, digest: str) -> Path:
        return self.folder / digest

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the lock for placing and dropping folders, across the processes of this machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield

    @contextmanager
    def incoming(self) -> Generator[Path, None, None]:
        """Yield an empty folder, removed afterwards unless it was placed. Leftovers of dead processes are removed."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sweep()
            incoming_folder = self.folder / f"{INCOMING}{secrets.token_hex(8)}"
            lock = FileLock(lock_of(incoming_folder))
            try:
                with lock:
                    incoming_folder.mkdir()
                    try:
                        yield incoming_folder
                    finally:
                        shutil.rmtree(incoming_folder, ignore_errors=True)
            finally:
                with suppress(OSError):
                    lock_of(incoming_folder).unlink()

    def sweep(self) -> None:
        """Remove the incoming folders of killed processes."""
        for incoming_folder in self.folder.glob(f"{INCOMING}*"):
            if incoming_folder.suffix == ".lock":
                continue
            try:
                with FileLock(lock_of(incoming_folder), timeout=0):
                    shutil.rmtree(incoming_folder, ignore_errors=True)
                with suppress(OSError):
                    lock_of(incoming_folder).unlink()
            except Timeout:
                pass  # its process is alive

    def place(self, incoming_folder: Path, digest: str, files: Mapping[str, str]) -> Path:
        """Move an incoming folder to its final place; call with the lock held.

        An existing folder of that digest is kept if it is complete, else replaced.
        """
        target = self.path_of(digest)
        if target.exists():
            if problems_of(target, files) == {}:
                return target
            target.rename(broken := self.folder / f"{INCOMING}{secrets.token_hex(8)}")
            shutil.rmtree(broken, ignore_errors=True)
        incoming_folder.rename(target)
        flush(self.folder)
        return target

    def drop(self, digest: str) -> None:
        """Delete a version's folder; call with the lock held. Processes with open files can still read them."""
        target = self.path_of(digest)
        if target.is_dir():
            gone = self.folder / f"{INCOMING}{secrets.token_hex(8)}"
            target.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def lock_of(incoming_folder: Path) -> Path:
    return incoming_folder.with_name(f"{incoming_folder.name}.lock")


def problems_of(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Return the problems of a version's files by name: `missing`, `changed`, or why a file cannot be read."""
    problems: dict[str, str] = {}
    for name, digest in files.items():
        try:
            if hash_of(folder / name) != digest:
                problems[name] = "changed"
        except FileNotFoundError:
            problems[name] = "missing"
        except OSError as error:
            problems[name] = f"cannot be read: {error.strerror}"
    return problems


def hash_of(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file to a path that does not exist, sync it to disk, and return its sha256.

    Raises:
        CorruptModel: the source cannot be read. StorageFailed (within `writing`): the copy cannot be written.
    """
    total = hashlib.sha256()
    try:
        file = open_regular(source)
    except OSError as error:
        raise CorruptModel(f"{source} cannot be read: {error.strerror}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with file, target.open("xb") as copy:
        while chunk := file.read(CHUNK):
            total.update(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return total.hexdigest()


@contextmanager
def writing(folder: Path) -> Generator[None, None, None]:
    """Turn an OSError, such as a full or read-only disk, into StorageFailed with a clear message."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room, or set SAFELIGHT_HOME to another disk" if full else "set SAFELIGHT_HOME to another folder"
        raise StorageFailed(f"cannot write to {folder}: {error.strerror or error}; {remedy}") from error


def require_space(folder: Path, size_bytes: int) -> None:
    """
    Raises:
        StorageFailed: the folder's disk has less free space than `size_bytes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    usage = shutil.disk_usage(folder)
    # Some network file systems report nothing at all.
    if usage.total and usage.free < size_bytes:
        raise StorageFailed(
            f"cannot write to {folder}: {size_bytes / 1e9:,.2f} GB are needed and {usage.free / 1e9:,.2f} are free; "
            "make room, or set SAFELIGHT_HOME to another disk"
        )


def flush(folder: Path) -> None:
    """Sync a folder, so that a rename in it is on disk; where folders cannot be opened (Windows), it already is."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
