"""What was found becomes the files of a version, copied and summed in one go."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import InvalidRequest
from safelight.models.registry.describe_files import FileDescription
from safelight.models.registry.source import Source
from safelight.models.registry.storage import copy_hashed, flush, hash_of, require_room, writing


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFiles:
    source: Source
    contents: FileDescription
    folder: Path
    """Where its files are now: in a room of ours, or where they were."""
    in_place: bool
    sums: Mapping[str, str]
    """sha256 of each file that is read."""

    @property
    def digest(self) -> str:
        return self.contents.digest(self.sums)


def bring_in(
    source: Source, contents: FileDescription, room: Path, *, in_place: bool, sha256: str | None
) -> StoredFiles:
    """
    Raises:
        InvalidRequest: it has not the sha256 that was said.
        StorageFailed: there is no room for it.
    """
    if sha256 is not None and not contents.entry:
        raise InvalidRequest("--sha256 is for a single file; a folder's digest is shown when it is added")
    if in_place:
        first = next(iter(contents.read.values()))
        folder = first.parent if contents.entry else source.path
        sums = {name: hash_of(path) for name, path in contents.read.items()}
    else:
        folder = room / "files"
        with writing(folder):
            sums = moved_in(contents, folder, room)
    if sha256 is not None and sums[contents.entry] != sha256.lower():
        raise InvalidRequest(
            f"its sha256 is {sums[contents.entry]}, not {sha256.lower()}: this is not the file you mean"
        )
    return StoredFiles(source=source, contents=contents, folder=folder, in_place=in_place, sums=sums)


def moved_in(contents: FileDescription, folder: Path, room: Path) -> dict[str, str]:
    folder.mkdir()
    here = {name: path for name, path in contents.read.items() if path.is_relative_to(room)}
    require_room(folder, sum(path.stat().st_size for name, path in contents.read.items() if name not in here))
    for name, path in contents.beside.items():
        copy_hashed(path, folder / name)
    sums: dict[str, str] = {}
    for name, path in contents.read.items():
        if name in here:  # downloaded just now, and ours
            path.rename(folder / name)
            flush_file(folder / name)
            sums[name] = hash_of(folder / name)
        else:
            sums[name] = copy_hashed(path, folder / name)
    flush(folder)
    return sums


def flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
