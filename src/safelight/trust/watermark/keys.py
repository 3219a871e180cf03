"""The secrets of a deployment, oldest first: one marks new pictures, and all of them read old ones.

A key file, `0001.key`, is 64 hex digits. A key is never replaced: rotation adds the next number.
"""

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from safelight.errors import StorageFailed

KEY_BYTES = 32
ASSET_BYTES = 8
FILE_NAME = re.compile(r"\d{4}\.key")


@dataclass(frozen=True, kw_only=True)
class WatermarkKey:
    secret: bytes = field(repr=False)
    """32 random bytes. Whoever knows them can forge the mark."""

    @cached_property
    def id(self) -> str:
        """Eight hex digits that name the key and reveal nothing of it."""
        return self.derive("key id")[:4].hex()

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose: HMAC-SHA256 (RFC 2104) of its name."""
        return hmac.digest(self.secret, f"safelight watermark: {purpose}".encode(), hashlib.sha256)


def asset_id(key: WatermarkKey, spec_digest: str) -> str:
    """The first 64 bits of HMAC-SHA256(key, spec digest), as 16 hex digits: the same spec has the same id."""
    return hmac.digest(key.secret, spec_digest.encode(), hashlib.sha256)[:ASSET_BYTES].hex()


@dataclass(frozen=True, kw_only=True)
class Keyring:
    keys: tuple[WatermarkKey, ...]
    """Every key that was ever used, the oldest first; at least one."""

    @property
    def current(self) -> WatermarkKey:
        """The key that marks new pictures."""
        return self.keys[-1]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the keys of a folder; the first call creates the folder and a key.

        Raises:
            StorageFailed: the folder cannot be read or written, or holds a damaged key.
        """
        if not key_files(folder):
            add_key(folder, number=1)
        return cls.read(folder)

    @classmethod
    def rotate(cls, folder: Path) -> Self:
        """Add a key, which marks pictures from now on; the old ones stay readable.

        Raises:
            StorageFailed: as in `open`.
        """
        existing = key_files(folder)
        add_key(folder, number=int(existing[-1].stem) + 1 if existing else 1)
        return cls.read(folder)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the keys of a folder without changing it.

        Raises:
            StorageFailed: there is none, or one is damaged.
        """
        files = key_files(folder)
        if not files:
            raise StorageFailed(f"no watermark key in {folder}: pictures marked with it cannot be read")
        return cls(keys=tuple(map(read_key, files)))


def key_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if FILE_NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageFailed(f"cannot read {folder}: {error.strerror}") from None


def read_key(path: Path) -> WatermarkKey:
    try:
        text = path.read_text("ascii").strip()
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", text):
        raise StorageFailed(f"{path} is not a watermark key of {2 * KEY_BYTES} hex digits; restore it from a backup")
    return WatermarkKey(secret=bytes.fromhex(text))


def add_key(folder: Path, *, number: int) -> None:
    """Write a new key, readable by its owner only; if another process was first with this number, its key counts."""
    path = folder / f"{number:04}.key"
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link appears whole or not at all, and never replaces a key.
        with suppress(FileExistsError):
            path.hardlink_to(part)
        part.unlink()
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error.strerror or error}") from None
