"""Examines files with all detectors of this installation, and signs what they found."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from safelight.errors import InvalidImage
from safelight.imaging.open_image import open_image, read_bounded
from safelight.settings import Settings
from safelight.trust.credentials import trusted_roots
from safelight.trust.examination import Examination, Layer, examination
from safelight.trust.fingerprint import SAME, agreement
from safelight.trust.signer import make_context
from safelight.trust.statements import StatementSigner
from safelight.trust.verify import verify
from safelight.trust.watermark.detect import detect
from safelight.trust.watermark.embed import ALGORITHM
from safelight.trust.watermark.keys import Keyring

if TYPE_CHECKING:
    from c2pa import Context

    from safelight.trust.ledger import Ledger


WATERMARK = f"keyed spread spectrum in the pixels ({ALGORITHM})"


class Examiner:
    """Safe to use from many threads. Nothing that it reads is kept."""

    def __init__(self, settings: Settings, ledger: "Ledger | None" = None) -> None:
        self.settings = settings
        self.ledger = ledger

    @cached_property
    def context(self) -> "Context":
        return make_context(trusted_roots(self.settings.trust))

    def examine(self, source: bytes | Path, *, trusted: bool = False) -> Examination:
        """
        Args:
            trusted: the file is not a stranger's, of whom no AVIF is decoded (`imaging/open_image.py`).

        Raises:
            InvalidImage: the file is no picture, or not one that is safe to open.
            OSError: it cannot be read.
        """
        limits = self.settings
        data = read_bounded(source, limits.max_file_bytes)
        report = verify(data, self.context, max_pixels=limits.max_pixels, max_file_bytes=limits.max_file_bytes)
        further = [*self.watermark_layers(data, trusted=trusted)]
        if self.ledger:
            further.append(self.ledger_layer(report.sha256))
        return examination(report, at=datetime.now(UTC), further=further)

    def watermark_layers(self, data: bytes, *, trusted: bool) -> Iterator[Layer]:
        """Whose mark the pixels carry, and whether the picture is the one that it was made for."""
        if not self.settings.watermark_keys.is_dir():
            return
        limits = self.settings
        try:
            image = open_image(
                data, max_pixels=limits.max_pixels, max_file_bytes=limits.max_file_bytes, trusted=trusted
            )
        except InvalidImage as error:
            yield Layer(
                name="watermark", technique=WATERMARK, found=False, state="not read", says={}, reasons=(str(error),)
            )
            return
        found = detect(image, Keyring.read(self.settings.watermark_keys), search="full")
        says: dict[str, object] = {"z": round(found.z, 1)}
        state, reasons = "absent", ()
        if found.found:
            state, says = "found", says | {"key": found.key_id}
            if found.asset:
                says["asset"] = found.asset
                same = self.is_asset(found.asset, image)
                if same is False:
                    state, reasons = "differs", ("the key is known, and the content differs from what it marked",)
                elif same:
                    says["content"] = "the picture that was marked"
        yield Layer(
            name="watermark",
            technique=WATERMARK,
            found=found.found,
            state=state,
            says=says if found.found else {},
            reasons=reasons,
        )

    def is_asset(self, uid: str, image: Image.Image) -> bool | None:
        """Whether the picture looks like one that was drawn under that id; None: nothing is kept to compare it with."""
        rows = [row for row in self.ledger.find(uid) if row.intact and row.likeness] if self.ledger else []
        if not rows:
            return None
        return any(agreement(row.likeness, image) >= SAME for row in rows if row.likeness)

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
