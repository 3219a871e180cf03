"""The keys of the ledger's chain, in SAFELIGHT_HOME/trust/ledger.json (0600).

32 random bytes each. A key's id is a digest of it. Rows made with former keys are checked with them, so none is ever
removed. Which key makes the next row is said by the chain itself: that of the row before, until a `rotated` row.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from safelight.errors import StorageFailed
from safelight.regular_file import is_regular
from safelight.trust.credentials import locked, read_file, write_secret

NAME = "ledger.json"
KEY_BYTES = 32


def open_keys(folder: Path) -> dict[str, bytes]:
    """All keys by id, the newest last; the first time, one is made.

    Raises:
        StorageFailed: they cannot be read or written, or are damaged.
    """
    found = read_keys(folder)
    if found:
        return found
    with locked(folder):
        return read_keys(folder) or write_keys(folder, {})


def read_keys(folder: Path) -> dict[str, bytes]:
    """All keys by id, the newest last; raises as `open_keys`."""
    path = folder / NAME
    if not is_regular(path):
        return {}
    try:
        keys = {name: bytes.fromhex(key) for name, key in json.loads(read_file(path))["keys"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        keys = {}
    if not keys or any(len(key) != KEY_BYTES or id_of(key) != name for name, key in keys.items()):
        raise StorageFailed(f"{path}, the key of the ledger, is damaged: restore it from a backup")
    return keys


def add_key(folder: Path) -> tuple[str, dict[str, bytes]]:
    """The id of a new key, and all keys with it."""
    with locked(folder):
        keys = write_keys(folder, read_keys(folder))
    return [*keys][-1], keys


def write_keys(folder: Path, former: Mapping[str, bytes]) -> dict[str, bytes]:
    """Write one key more. Call it under the lock."""
    key = secrets.token_bytes(KEY_BYTES)
    keys = {**former, id_of(key): key}
    data = json.dumps({"keys": {name: value.hex() for name, value in keys.items()}}, indent=1)
    write_secret(folder / NAME, data.encode())
    return keys


def id_of(key: bytes) -> str:
    return hashlib.sha256(b"safelight ledger key " + key).hexdigest()[:16]
