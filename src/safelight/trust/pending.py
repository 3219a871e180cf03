"""Entries that the database could not take yet, one file each in SAFELIGHT_HOME/trust/pending.

A file appears whole or not at all, and is removed once its entry is in the database. Until then it holds what the entry
holds, prompts too.
"""

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from safelight.errors import StorageFailed
from safelight.trust.credentials import read_file, storage_errors, write_secret
from safelight.trust.entry import Entry

log = logging.getLogger(__name__)


class Pending:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "pending"

    def put(self, entry: Entry) -> None:
        """
        Raises:
            StorageFailed: the disk does not take it either.
        """
        with storage_errors(self.folder.parent):
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
        write_secret(self.folder / name, entry.to_json().encode())

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("*.json"))

    def read(self) -> Iterator[tuple[Path, Entry]]:
        """Oldest first. What is no entry is reported in the log and left where it is."""
        for path in self.paths():
            try:
                yield path, Entry.from_json(read_file(path).decode())
            except StorageFailed:
                if path.exists():  # otherwise another process has just written its entry to the database
                    raise
            except (ValueError, TypeError, KeyError):
                log.error("%s is no entry of the ledger; look at it, and remove it", path)

    def remove(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            path.unlink()
