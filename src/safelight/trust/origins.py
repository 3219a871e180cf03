"""What pictures that were sent said of themselves, by the digest under which they are stored.

A stored picture has lost its metadata (`imaging/bare_png.py`), and with it the manifest that a picture made of it must
name as its parent. `ab/abcdef....json` has what `ingredients.keep` kept. The first file with a manifest counts: the
same pixels that come again without marks are the same picture.
"""

import base64
import json
import re
import secrets
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.errors import SafelightError, StorageFailed
from safelight.regular_file import read_regular
from safelight.settings import Settings
from safelight.trust.credentials import trusted_roots
from safelight.trust.ingredients import Kept, keep
from safelight.trust.signer import make_context

if TYPE_CHECKING:
    from c2pa import Context

MAX_ARCHIVE_BYTES = 4 * 2**20
"""A larger manifest is not kept: every picture made of it would carry it."""
UNMARKED = Kept(archive=None, signature="absent", reasons=(), source_type="")


class Origins:
    """
    Args:
        folder: where they are kept.
        trust: the folder of certificates, whose roots are trusted.
    """

    def __init__(self, folder: Path, trust: Path, *, max_pixels: int, max_file_bytes: int) -> None:
        self.folder = folder
        self.trust = trust
        self.max_pixels = max_pixels
        self.max_file_bytes = max_file_bytes

    @cached_property
    def context(self) -> "Context":
        return make_context(trusted_roots(self.trust))

    def note(self, data: bytes, digest: str) -> None:
        """Keep what the file says of itself, for the picture that is stored under that digest.

        Raises:
            InvalidImage: the file is no picture, or not one that is safe to open.
            StorageFailed: the disk is full, or the folder cannot be written.
        """
        found = self.read(data)
        if found != UNMARKED and self.of(digest).archive is None:
            self.write(found, digest)

    def read(self, data: bytes) -> Kept:
        """What a file says of itself."""
        found = keep(data, self.context, max_pixels=self.max_pixels, max_file_bytes=self.max_file_bytes)
        return replace(found, archive=None) if len(found.archive or b"") > MAX_ARCHIVE_BYTES else found

    def of(self, digest: str) -> Kept:
        """What is known of the picture of that digest."""
        try:
            values: dict[str, Any] = json.loads(read_regular(self.path_of(digest)))
        except FileNotFoundError:
            return UNMARKED
        except OSError as error:
            raise StorageFailed(f"cannot read {self.path_of(digest)}: {error.strerror or error}") from None
        except ValueError:
            return UNMARKED  # cut short by a full disk or a power cut
        archive = values["archive"]
        return Kept(
            archive=base64.b64decode(archive) if archive else None,
            signature=values["signature"],
            reasons=tuple(values["reasons"]),
            source_type=values["source_type"],
        )

    def write(self, found: Kept, digest: str) -> None:
        path = self.path_of(digest)
        values = {
            "archive": base64.b64encode(found.archive).decode() if found.archive else None,
            "signature": found.signature,
            "reasons": found.reasons,
            "source_type": found.source_type,
        }
        part = path.parent / f".{secrets.token_hex(8)}.part"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(values))
            part.replace(path)
        except OSError as error:
            raise StorageFailed(
                f"cannot write {path}: {error.strerror or error}; free some space, or let this user write there"
            ) from None
        finally:
            with suppress(OSError):
                part.unlink()

    def carry(self, of: str, data: bytes, to: str) -> None:
        """Keep for a picture what is known of the one that it was made of, which is stored as `data`."""
        found = self.of(of)
        if found == UNMARKED:
            with suppress(SafelightError):  # what is stored here can be opened; a damaged file fails when it is drawn
                found = self.read(data)
        if found != UNMARKED:
            self.write(found, to)

    def path_of(self, digest: str) -> Path:
        return origin_path(self.folder, digest)


def origin_path(folder: Path, digest: str) -> Path:
    """Where what is known of a picture lies."""
    assert re.fullmatch(r"[0-9a-f]{64}", digest), digest
    return folder / digest[:2] / f"{digest}.json"


def open_origins(settings: Settings) -> Origins:
    return Origins(
        settings.origins, settings.trust, max_pixels=settings.max_pixels, max_file_bytes=settings.max_file_bytes
    )
