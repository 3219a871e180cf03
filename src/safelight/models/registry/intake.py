"""Store a source as the files of a version, copied and hashed in one pass."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import InvalidRequest
from safelight.models.registry.describe_files import FileDescription
from safelight.models.registry.source import Source
from safelight.models.registry.storage import copy_hashed, flush, hash_of, require_space, writing


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFiles:
    source: Source
    description: FileDescription
    folder: Path
    """Where its files are now: in an incoming folder of the storage, or in their original place."""
    in_place: bool
    sums: Mapping[str, str]
    """sha256 of each of the description's `files`."""

    @property
    def digest(self) -> str:
        return self.description.digest(self.sums)


def store_files(
    source: Source, description: FileDescription, incoming: Path, *, in_place: bool, sha256: str | None
) -> StoredFiles:
    """
    Raises:
        InvalidRequest: its sha256 differs from the given one.
        StorageFailed: not enough disk space.
    """
    if sha256 is not None and not description.entry:
        raise InvalidRequest("--sha256 is for a single file; a folder's digest is shown when it is added")
    if in_place:
        first = next(iter(description.files.values()))
        folder = first.parent if description.entry else source.path
        sums = {name: hash_of(path) for name, path in description.files.items()}
    else:
        folder = incoming / "files"
        with writing(folder):
            sums = move_files(description, folder, incoming)
    if sha256 is not None and sums[description.entry] != sha256.lower():
        raise InvalidRequest(
            f"its sha256 is {sums[description.entry]}, not {sha256.lower()}: this is not the file you mean"
        )
    return StoredFiles(source=source, description=description, folder=folder, in_place=in_place, sums=sums)


def move_files(description: FileDescription, folder: Path, incoming: Path) -> dict[str, str]:
    folder.mkdir()
    downloaded = {name: path for name, path in description.files.items() if path.is_relative_to(incoming)}
    require_space(
        folder, sum(path.stat().st_size for name, path in description.files.items() if name not in downloaded)
    )
    for name, path in description.extra_files.items():
        copy_hashed(path, folder / name)
    sums: dict[str, str] = {}
    for name, path in description.files.items():
        if name in downloaded:  # already in the incoming folder
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
