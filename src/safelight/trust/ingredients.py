"""What is kept of a picture that was sent, for the marks and manifests of pictures made from it.

Pictures are stored without their metadata (`imaging/bare_png.py`), and so without their manifest. `keep` reads it
before: the archive holds the manifest and what its verification found, so that a later picture names it as its parent,
and a parent that was tampered with is seen in every child.
"""

import json
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from safelight.trust.verify import State, verify

if TYPE_CHECKING:
    from c2pa import Context

ARCHIVE = "application/c2pa"
LABEL = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    archive: bytes | None
    """Stands for the picture in `sign`; None if it has no manifest that can be read."""
    signature: State
    reasons: tuple[str, ...]
    source_type: str
    """IPTC's, the full URI: what the signature says, or the metadata; empty: neither says anything."""


def keep(data: bytes, context: "Context", *, max_pixels: int, max_file_bytes: int) -> Kept:
    """
    Args:
        context: the signer's; its roots decide whether the manifest is trusted.

    Raises:
        InvalidImage: the file is no picture, or not one that is safe to open.
    """
    found = verify(data, context, max_pixels=max_pixels, max_file_bytes=max_file_bytes)
    signature = found.signature
    holds = signature.state in ("valid", "untrusted")
    return Kept(
        archive=archive_of(data, found.mime, context) if signature.manifest else None,
        signature=signature.state,
        reasons=signature.reasons,
        source_type=signature.source_types[-1] if holds and signature.source_types else found.metadata.source_type,
    )


def archive_of(data: bytes, mime: str, context: "Context") -> bytes | None:
    from c2pa import Builder, C2paError

    ingredient = {"title": "picture", "relationship": "inputTo", "label": LABEL, "instance_id": LABEL}
    archive = BytesIO()
    try:
        with Builder.from_json(
            json.dumps({"claim_generator_info": [{"name": "safelight"}]}), context=context
        ) as builder:
            builder.add_ingredient(json.dumps(ingredient), mime, BytesIO(data))
            builder.write_ingredient_archive(LABEL, archive)
    except C2paError:
        return None
    return archive.getvalue()


def is_archive(data: bytes) -> bool:
    """A JUMBF box, as every manifest store is (ISO 19566-5)."""
    return data[4:8] == b"jumb"
