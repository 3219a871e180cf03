"""Examines files with all detectors of this installation, and signs what they found."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.imaging.open_image import read_bounded
from safelight.settings import Settings
from safelight.trust.credentials import trusted_roots
from safelight.trust.examination import Examination, examination
from safelight.trust.signer import make_context
from safelight.trust.statements import StatementSigner
from safelight.trust.verify import verify

if TYPE_CHECKING:
    from c2pa import Context


class Examiner:
    """Safe to use from many threads. Nothing that it reads is kept."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def context(self) -> "Context":
        return make_context(trusted_roots(self.settings.trust))

    def examine(self, source: bytes | Path) -> Examination:
        """
        Raises:
            InvalidImage: the file is no picture, or not one that is safe to open.
            OSError: it cannot be read.
        """
        limits = self.settings
        data = read_bounded(source, limits.max_file_bytes)
        report = verify(data, self.context, max_pixels=limits.max_pixels, max_file_bytes=limits.max_file_bytes)
        return examination(report, at=datetime.now(UTC))

    def signed(self, found: Sequence[Examination]) -> str:
        """The findings as a compact JWS, signed with the certificate of pictures.

        Raises:
            SafelightError: nothing can sign.
        """
        return StatementSigner.open(self.settings).sign({"pictures": [one.to_json() for one in found]})
