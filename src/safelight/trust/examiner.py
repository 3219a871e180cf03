"""Examines files with all detectors of this installation, and signs what they found."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.imaging.open_image import read_bounded
from safelight.settings import Settings
from safelight.trust.credentials import trusted_roots
from safelight.trust.examination import Examination, Layer, examination
from safelight.trust.signer import make_context
from safelight.trust.statements import StatementSigner
from safelight.trust.verify import verify

if TYPE_CHECKING:
    from c2pa import Context

    from safelight.trust.ledger import Ledger


class Examiner:
    """Safe to use from many threads. Nothing that it reads is kept."""

    def __init__(self, settings: Settings, ledger: "Ledger | None" = None) -> None:
        self.settings = settings
        self.ledger = ledger

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
        further = [self.ledger_layer(report.sha256)] if self.ledger else []
        return examination(report, at=datetime.now(UTC), further=further)

    def ledger_layer(self, sha256: str) -> Layer:
        """Whether the very file was made here."""
        assert self.ledger
        rows = [row for row in self.ledger.find_asset(sha256) if row.intact]
        says: dict[str, object] = {}
        if rows:
            record = rows[0].record
            drawn = datetime.fromtimestamp(record["time"], UTC).isoformat(timespec="seconds")
            says = {"made_here": drawn, "action": record["action"]}
            if record.get("model"):
                says["model"] = f"sha256:{record['model']}"
        return Layer(
            name="ledger",
            technique="sha256 of the file in this installation's ledger",
            found=bool(rows),
            state="found" if rows else "absent",
            says=says,
        )

    def signed(self, found: Sequence[Examination]) -> str:
        """The findings as a compact JWS, signed with the certificate of pictures.

        Raises:
            SafelightError: nothing can sign.
        """
        return StatementSigner.open(self.settings).sign({"pictures": [one.to_json() for one in found]})
