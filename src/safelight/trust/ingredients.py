"""What is kept of a picture that was sent, for the manifests of pictures made from it.

Pictures are stored without their metadata (`imaging/bare_png.py`), and so without their manifest. `keep` reads it
before: the result holds the manifest and what its verification found, so that a later picture names it as its parent,
and a parent that was tampered with is seen in every child.
"""

import json
from io import BytesIO
from typing import TYPE_CHECKING

from safelight.errors import InvalidImage
from safelight.imaging.open_image import MIME, detect_format

if TYPE_CHECKING:
    from c2pa import Context

ARCHIVE = "application/c2pa"
LABEL = "kept"


def keep(data: bytes, context: "Context") -> bytes | None:
    """What is to be kept of a file: an archive for `sign`, or None if it has no manifest that c2pa can read."""
    from c2pa import Builder, C2paError, Reader

    try:
        mime = MIME[detect_format(data)]
        reader = Reader.try_create(mime, BytesIO(data), context=context)
        if reader is None:
            return None
        reader.close()
        builder = Builder.from_json(json.dumps({"claim_generator_info": [{"name": "safelight"}]}), context=context)
        ingredient = {"title": "picture", "relationship": "inputTo", "label": LABEL, "instance_id": LABEL}
        builder.add_ingredient(json.dumps(ingredient), mime, BytesIO(data))
        archive = BytesIO()
        builder.write_ingredient_archive(LABEL, archive)
        builder.close()
    except (C2paError, InvalidImage):
        return None
    return archive.getvalue()


def is_archive(data: bytes) -> bool:
    """A JUMBF box, as every manifest store is (ISO 19566-5)."""
    return data[4:8] == b"jumb"
