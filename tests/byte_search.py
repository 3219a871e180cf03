"""What lies in files, byte by byte, whatever a program would make of it."""

from collections.abc import Iterator
from pathlib import Path


def bytes_of(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield path, path.read_bytes()


def where(needles: dict[str, bytes], *folders: Path) -> list[tuple[str, str]]:
    """Which needle lies in which file."""
    return [
        (name, str(path)) for path, data in bytes_of(*folders) for name, needle in needles.items() if needle in data
    ]
