"""Pictures as files named by the sha256 of their bytes: `ab/abcdef....png`.

A name never changes its meaning, the same picture twice is one file, and a file is whole or not there at all. Calls
block: on an event loop, run them in a thread.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from PIL import Image

from safelight.assets.encode import encode_plain
from safelight.errors import CorruptAsset, StorageFailed, UnknownAsset
from safelight.regular_file import is_regular, read_regular


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    id: str
    """sha256 of the file, in hex."""
    path: Path
    size_bytes: int


class AssetStore:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes, suffix: str) -> Asset:
        """Store the bytes once, however often they come; `suffix` as in `.png`."""
        assert re.fullmatch(r"\.[a-z0-9]{1,8}", suffix), suffix
        digest = hashlib.sha256(data).hexdigest()
        path = self._find(digest) or self.folder / digest[:2] / (digest + suffix)
        with storage_errors(path):
            # A file that was damaged since is written anew.
            if not (is_regular(path) and read_regular(path) == data):
                with written_beside(path, data) as part:
                    part.replace(path)
        return Asset(id=digest, path=path, size_bytes=len(data))

    def put_image(self, image: Image.Image) -> str:
        """Store a picture that a job starts from; returns what its spec calls it."""
        return self.put(encode_plain(image), ".png").id

    def path_of(self, digest: str) -> Path:
        path = self._find(digest)
        if path is None:
            raise UnknownAsset(f"no picture {digest!r} is stored here; an id is the 64 hex digits a job reported")
        return path

    def read(self, digest: str) -> bytes:
        """The bytes that were put, or an error: never others."""
        path = self.path_of(digest)
        try:
            data = read_regular(path)
        except OSError as error:
            raise StorageFailed(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptAsset(f"{path} was damaged or changed after it was stored; restore it or draw it again")
        return data

    def copy_to(self, asset: Asset, destination: Path) -> Path:
        """Copy under a name of the caller's; a name taken by another file becomes `name-2.png`, and so on."""
        data = self.read(asset.id)
        with storage_errors(destination), written_beside(destination, data) as part:
            for path in numbered(destination):
                try:
                    path.open("xb").close()
                except FileExistsError:
                    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
                        return path
                else:
                    # The name is ours: nobody else's file is replaced.
                    part.replace(path)
                    return path
        raise AssertionError("numbers do not end")

    def _find(self, digest: str) -> Path | None:
        """The digest may come from a URL: only what looks like one reaches the file system."""
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            return None
        return next((self.folder / digest[:2]).glob(f"{digest}.*"), None)


@contextmanager
def written_beside(path: Path, data: bytes) -> Generator[Path, None, None]:
    """The bytes under a temporary name in the folder of `path`, safe on disk; gone afterwards unless renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            part.unlink()


def sync_folder(folder: Path) -> None:
    """A renamed file survives a power cut once its folder is on disk; Windows needs and has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"cannot write {path}: {error.strerror or error}; free some space, or choose a folder that can be written"
        ) from error


def numbered(path: Path) -> Iterator[Path]:
    """`apple.png`, `apple-2.png`, `apple-3.png`, ..."""
    yield path
    for number in count(2):
        yield path.with_stem(f"{path.stem}-{number}")
