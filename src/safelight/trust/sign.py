"""An encoded picture and its manifest become a signed picture. Nothing may change its bytes afterwards."""

import json
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from safelight.errors import SigningFailed
from safelight.imaging.open_image import MIME, detect_format
from safelight.trust.ingredients import ARCHIVE, is_archive
from safelight.trust.manifest import Input, Manifest
from safelight.trust.signer import Signed, Signer

if TYPE_CHECKING:
    from c2pa import Builder

NO_PICTURES: Mapping[str, bytes] = {}


def sign(
    data: bytes,
    manifest: Manifest,
    signer: Signer,
    *,
    pictures: Mapping[str, bytes] = NO_PICTURES,
    detached: bool = False,
) -> Signed:
    """Sign a picture, with its inputs as ingredients; c2pa verifies what it signed.

    Args:
        data: the encoded picture: PNG, JPEG, WebP or AVIF.
        pictures: for each input of the manifest, by digest: the file, or what `ingredients.keep` kept of it.
        detached: leave the picture as it is, and return the manifest for a sidecar file; `data` must have none inside.

    Raises:
        SigningFailed: the picture must not leave.
    """
    if missing := [given.title for given in manifest.inputs if given.digest not in pictures]:
        raise SigningFailed(
            f"the picture cannot be signed: its manifest names its {', its '.join(missing)}, whose file was not given"
        )

    def prepare() -> "Builder":
        from c2pa import Builder

        builder = Builder.from_json(json.dumps(manifest.definition), context=signer.context)
        for name, content in manifest.resources.items():
            builder.add_resource(name, BytesIO(content))
        for given in manifest.inputs:
            add(builder, given, pictures[given.digest])
        return builder

    return signer.sign(data, MIME[detect_format(data)], prepare, detached=detached)


def add(builder: "Builder", given: Input, data: bytes) -> None:
    # Actions find an ingredient by its label; in a kept one, by nothing else.
    described: dict[str, Any] = {
        "title": given.title,
        "relationship": given.relationship,
        "label": given.label,
        "instance_id": given.label,
    }
    builder.add_ingredient(
        json.dumps(described), ARCHIVE if is_archive(data) else MIME[detect_format(data)], BytesIO(data)
    )
