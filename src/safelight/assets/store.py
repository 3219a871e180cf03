"""Images stored as files named by the sha256 of their bytes: `ab/abcdef....png`.

A name always means the same bytes, the same image stored twice is one file, and files are written atomically. Calls
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
        """Store the bytes, once if called repeatedly; `suffix` as in `.png`."""
        assert re.fullmatch(r"\.[a-z0-9]{1,8}", suffix), suffix
        digest = hashlib.sha256(data).hexdigest()
        path = self._find(digest) or self.folder / digest[:2] / (digest + suffix)
        with storage_errors(path):
            # A file that was damaged since is written again.
            if not (is_regular(path) and read_regular(path) == data):
                with written_temporarily(path, data) as part:
                    part.replace(path)
        return Asset(id=digest, path=path, size_bytes=len(data))

    def put_image(self, image: Image.Image) -> str:
        """Store an input image of a job and return its id, as used in the spec."""
        return self.put(encode_plain(image), ".png").id

    def signed_before(self, key: str) -> Asset | None:
        """The asset that `note_signed` noted under the key, if it is still whole."""
        try:
            digest = read_regular(self._note(key)).decode()
            return Asset(id=digest, path=self.path_of(digest), size_bytes=len(self.read(digest)))
        except (OSError, UnknownAsset, CorruptAsset, UnicodeDecodeError):
            return None

    def note_signed(self, key: str, asset: Asset) -> None:
        """Note which asset a file became when it was signed; losing the note only costs a second signature."""
        with suppress(OSError), written_temporarily(self._note(key), asset.id.encode()) as part:
            part.replace(self._note(key))

    def _note(self, key: str) -> Path:
        return self.folder / "signed" / key[:2] / key

    def path_of(self, digest: str) -> Path:
        path = self._find(digest)
        if path is None:
            raise UnknownAsset(f"no picture {digest!r} is stored here; an id is the 64 hex digits a job reported")
        return path

    def has(self, digest: str) -> bool:
        return self._find(digest) is not None

    def remove(self, digest: str) -> None:
        """Remove a stored image; nothing happens if it is not there.

        Raises:
            StorageFailed: the file cannot be removed.
        """
        if (path := self._find(digest)) is not None:
            try:
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
            except OSError as error:
                raise StorageFailed(f"cannot remove {path}: {error.strerror or error}") from error

    def read(self, digest: str) -> bytes:
        """Return the stored bytes, verified by their sha256."""
        path = self.path_of(digest)
        try:
            data = read_regular(path)
        except OSError as error:
            raise StorageFailed(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptAsset(f"{path} was damaged or changed after it was stored; restore it or draw it again")
        return data

    def copy_to(self, asset: Asset, destination: Path) -> Path:
        """Copy to a path; if another file has that name, `name-2.png` is used, and so on."""
        data = self.read(asset.id)
        with storage_errors(destination), written_temporarily(destination, data) as part:
            for path in numbered(destination):
                try:
                    path.open("xb").close()
                except FileExistsError:
                    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
                        return path
                else:
                    # This call created the file, so no other file is replaced.
                    part.replace(path)
                    return path
        raise AssertionError("numbers do not end")

    def _find(self, digest: str) -> Path | None:
        """Find the file of a digest. It may come from a URL, so it is validated before any file access."""
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            return None
        return next((self.folder / digest[:2]).glob(f"{digest}.*"), None)


@contextmanager
def written_temporarily(path: Path, data: bytes) -> Generator[Path, None, None]:
    """Write the bytes to a temporary file in the folder of `path`, synced; it is removed afterwards unless renamed."""
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
    """Sync a folder, so that a renamed file survives a power cut; Windows neither needs nor has such a call."""
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
    """Yield `apple.png`, `apple-2.png`, `apple-3.png`, ..."""
    yield path
    for number in count(2):
        yield path.with_stem(f"{path.stem}-{number}")
