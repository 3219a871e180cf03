"""Where the files of versions lie: SAFELIGHT_HOME/versions/DIGEST, written beside and moved there whole.

.incoming-TOKEN/        files on their way in, with a lock that its process holds for as long as it lives
.incoming-TOKEN.lock
.lock                   held for the moments in which a folder and its row must change together
DIGEST/                 the files of one version; of a single file, `weights.safetensors`
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

    def of(self, digest: str) -> Path:
        return self.folder / digest

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Nobody else on this machine places or drops a folder meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield

    @contextmanager
    def incoming(self) -> Generator[Path, None, None]:
        """An empty folder, gone afterwards unless it was placed; what dead processes left is gone before."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sweep()
            room = self.folder / f"{INCOMING}{secrets.token_hex(8)}"
            lock = FileLock(lock_of(room))
            try:
                with lock:
                    room.mkdir()
                    try:
                        yield room
                    finally:
                        shutil.rmtree(room, ignore_errors=True)
            finally:
                with suppress(OSError):
                    lock_of(room).unlink()

    def sweep(self) -> None:
        """Remove what processes left behind that were killed."""
        for room in self.folder.glob(f"{INCOMING}*"):
            if room.suffix == ".lock":
                continue
            try:
                with FileLock(lock_of(room), timeout=0):
                    shutil.rmtree(room, ignore_errors=True)
                with suppress(OSError):
                    lock_of(room).unlink()
            except Timeout:
                pass  # its process is alive

    def place(self, room: Path, digest: str, files: Mapping[str, str]) -> Path:
        """Move what came in to where it stays; to be called with the lock held.

        What is there already under that digest is kept if it is whole, else replaced.
        """
        target = self.of(digest)
        if target.exists():
            if faults_of(target, files) == {}:
                return target
            target.rename(broken := self.folder / f"{INCOMING}{secrets.token_hex(8)}")
            shutil.rmtree(broken, ignore_errors=True)
        room.rename(target)
        flush(self.folder)
        return target

    def drop(self, digest: str) -> None:
        """To be called with the lock held. Whoever has the files open keeps them."""
        target = self.of(digest)
        if target.is_dir():
            gone = self.folder / f"{INCOMING}{secrets.token_hex(8)}"
            target.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def lock_of(room: Path) -> Path:
    return room.with_name(f"{room.name}.lock")


def faults_of(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with the files of a version, by name: `missing`, `changed` or why it cannot be read."""
    faults: dict[str, str] = {}
    for name, digest in files.items():
        try:
            if hash_of(folder / name) != digest:
                faults[name] = "changed"
        except FileNotFoundError:
            faults[name] = "missing"
        except OSError as error:
            faults[name] = f"cannot be read: {error.strerror}"
    return faults


def hash_of(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file to where none is, on disk when this returns; its sha256.

    Raises:
        CorruptModel: it cannot be read. StorageFailed (within `writing`): the copy cannot be written.
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
    """A disk that is full, or read-only, is said plainly."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room, or set SAFELIGHT_HOME to another disk" if full else "set SAFELIGHT_HOME to another folder"
        raise StorageFailed(f"cannot write to {folder}: {error.strerror or error}; {remedy}") from error


def require_room(folder: Path, size_bytes: int) -> None:
    """
    Raises:
        StorageFailed: so much does not fit on the folder's disk.
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
    """A rename is on disk once its folder is; where folders cannot be opened (Windows), it is when it returns."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
