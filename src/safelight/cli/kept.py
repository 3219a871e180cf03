"""Pictures that callers name by file, stored as specs name them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safelight.settings import Settings


def kept(file: Path | None, settings: "Settings") -> str | None:
    """Open and store a picture file; returns the digest that specs name it by."""
    if file is None:
        return None
    from safelight.assets.store import AssetStore
    from safelight.imaging.open_image import open_image, read_bounded
    from safelight.trust.origins import open_origins

    image = open_image(
        file, max_pixels=settings.max_pixels, max_file_bytes=settings.max_file_bytes, mode="RGBA", trusted=True
    )
    opaque = image.getchannel("A").getextrema()[0] == 255
    digest = AssetStore(settings.blobs).put_image(image.convert("RGB") if opaque else image)
    open_origins(settings).note(read_bounded(file, settings.max_file_bytes), digest)
    return digest
