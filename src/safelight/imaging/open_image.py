"""Open untrusted images: identified by content, measured before decoding, and stripped of metadata.

The result is RGB or RGBA, upright, the first frame of an animation, and has no EXIF, no text and no colour profile.
Colours are taken as sRGB. `bare_file` strips a PNG without encoding it again.
"""

from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from safelight.errors import InvalidImage
from safelight.imaging.bare_png import bare_png
from safelight.regular_file import is_regular, open_regular

ACCEPTED = "give a PNG, JPEG, WebP or GIF picture"
FileFormat = Literal["PNG", "JPEG", "WEBP", "AVIF", "GIF"]
"""As Pillow names them."""
MIME: dict[FileFormat, str] = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "GIF": "image/gif",
}
OTHER_FORMATS: dict[bytes, str] = {
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"8BPS": "Photoshop",
    b"PK\x03\x04": "ZIP",
    b"\x1f\x8b": "gzip",
    b"<svg": "SVG",
    b"<?xml": "XML or SVG",
    b"<!DOCTYPE": "HTML",
    b"<html": "HTML",
}
"""Formats named in the error message, by their first bytes."""
MAX_BRAND_BYTES = 256
MAX_SCANS = 500
"""Of a progressive JPEG; each scan decodes the whole image again: libjpeg-turbo's advice against bombs."""
ORIENTATIONS: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each EXIF orientation; 1 is upright."""


def open_image(
    source: bytes | Path,
    *,
    max_pixels: int,
    max_file_bytes: int,
    mode: Literal["RGB", "RGBA"] = "RGB",
    trusted: bool = False,
) -> Image.Image:
    """Decode an image; in RGB, transparent areas become white.

    Args:
        trusted: the file is the user's own or ours. AVIF is opened only then: its decoder makes pictures of up to 268
            million pixels whatever the header says, and scales them to it (seen with libavif 1.4).
    """
    with open_checked(source, max_pixels=max_pixels, max_file_bytes=max_file_bytes) as image:
        if image.format == "AVIF" and not trusted:
            raise InvalidImage(f"AVIF pictures are written, but not taken from others; {ACCEPTED}")
        load(image)
        try:
            plain = to_plain(upright(image), mode)
        except Exception as error:  # Pillow loads some damaged files, such as without a palette, and fails later
            raise InvalidImage(f"the {image.format} is cut short or damaged ({error}); send the whole file") from error
    plain.info.clear()
    return plain


def bare_file(data: bytes, *, max_pixels: int, max_file_bytes: int) -> bytes | None:
    """Return an untrusted PNG file without metadata; None if the image must be encoded again.

    Raises:
        InvalidImage: as `open_image`.
    """
    with open_checked(data, max_pixels=max_pixels, max_file_bytes=max_file_bytes) as image:
        if image.format != "PNG":
            return None
        load(image)
        return bare_png(data) if orientation_of(image) is None else None


def size_in(source: bytes | Path, *, max_pixels: int, max_file_bytes: int) -> tuple[int, int]:
    """Return width and height from the header alone, before EXIF rotation."""
    with open_checked(source, max_pixels=max_pixels, max_file_bytes=max_file_bytes) as image:
        return image.size


def load(image: ImageFile) -> None:
    try:
        image.load()
    except Exception as error:
        raise InvalidImage(f"the {image.format} is cut short or damaged ({error}); send the whole file") from error


@contextmanager
def open_checked(source: bytes | Path, *, max_pixels: int, max_file_bytes: int) -> Generator[ImageFile, None, None]:
    """Open an image with its header and size checked, but not decoded."""
    data = read_bounded(source, max_file_bytes)
    kind = detect_format(data)
    too_large = f"pixels, and at most {max_pixels:,} are opened; send a smaller picture"
    try:
        image = Image.open(BytesIO(data), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidImage(f"the {kind} declares too many {too_large} ({error})") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"the {kind} has a damaged or empty header; {ACCEPTED}") from error
    except Exception as error:  # Pillow's parsers can raise any exception
        raise InvalidImage(f"the {kind} is damaged or malicious ({error}); save it again, without metadata") from error
    with image:
        if image.width * image.height > max_pixels:
            raise InvalidImage(
                f"the {kind} is {image.width}x{image.height}, {image.width * image.height:,} {too_large}"
            )
        yield image


def read_bounded(source: bytes | Path, max_file_bytes: int) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        if not is_regular(source):
            raise InvalidImage(f"{source} is not a file; {ACCEPTED}")
        try:
            with open_regular(source) as file:
                data = file.read(max_file_bytes + 1)
        except OSError as error:
            raise InvalidImage(f"{source} cannot be read: {error.strerror}") from error
    if not data:
        raise InvalidImage(f"the file is empty; {ACCEPTED}")
    if len(data) > max_file_bytes:
        raise InvalidImage(f"the file is larger than the {max_file_bytes:,} bytes allowed; send a smaller one")
    return data


def detect_format(data: bytes) -> FileFormat:
    """Return the format by the first bytes, regardless of the file name."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        # A marker cannot occur inside a scan, so this counts scans, and a few bytes of thumbnails at most.
        if data.count(b"\xff\xda") > MAX_SCANS:
            raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans, which no camera writes; save it again")
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[4:8] == b"ftyp":
        # The major brand, a version, and the compatible brands, within the length of the box.
        brands = data[8 : min(int.from_bytes(data[:4], "big"), MAX_BRAND_BYTES)]
        if any(brands[at : at + 4] in (b"avif", b"avis") for at in range(0, len(brands), 4)):
            return "AVIF"
        raise InvalidImage(f"the file looks like HEIC or a video; {ACCEPTED}")
    name = next((name for start, name in OTHER_FORMATS.items() if data.startswith(start)), None)
    raise InvalidImage(f"the file {'is not a picture' if name is None else f'looks like {name}'}; {ACCEPTED}")


def upright(image: Image.Image) -> Image.Image:
    transpose = orientation_of(image)
    return image if transpose is None else image.transpose(transpose)


def orientation_of(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition for the EXIF orientation; None if the image is upright or EXIF is unreadable."""
    try:
        return ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  broken EXIF is no reason to refuse an image, and Pillow raises many exceptions
        return None


def to_plain(image: Image.Image, mode: Literal["RGB", "RGBA"]) -> Image.Image:
    """Convert to 8-bit RGB or RGBA."""
    if image.mode == "I;16":
        # Pillow's conversion clips at 255; the high byte is what it uses for 16-bit RGB.
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert(mode)
    rgba = image.convert("RGBA")
    return rgba if mode == "RGBA" else over_white(rgba)


def over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
