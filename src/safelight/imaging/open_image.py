"""Pictures from strangers: recognised by content, measured before decoding, and made plain.

What comes out is RGB or RGBA, upright, the first frame of an animation, and carries nothing else: no EXIF, no text,
no colour profile. Colours are taken as sRGB. `file_as_it_is` spares a PNG the encoding anew.
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

WANTED = "give a PNG, JPEG, WebP or GIF picture"
FOREIGN: dict[bytes, str] = {
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
"""Only for the message: what people most often give instead."""
MAX_SCANS = 500
"""Of a progressive JPEG, each of which decodes the whole picture anew: libjpeg-turbo's own advice against bombs."""
TURNS: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation; 1 is upright."""


def open_image(
    source: bytes | Path, *, max_pixels: int, max_file_bytes: int, mode: Literal["RGB", "RGBA"] = "RGB"
) -> Image.Image:
    """Decode an untrusted picture; in RGB, what was transparent is white."""
    with opened(source, max_pixels=max_pixels, max_file_bytes=max_file_bytes) as image:
        load(image)
        try:
            plain = without_extras(upright(image), mode)
        except Exception as error:  # Pillow loads some faults, such as a palette that is not there, and trips over them
            raise InvalidImage(f"the {image.format} is cut short or damaged ({error}); send the whole file") from error
    plain.info.clear()
    return plain


def file_as_it_is(data: bytes, *, max_pixels: int, max_file_bytes: int) -> bytes | None:
    """The file of an untrusted picture, less all but the picture; None where it must be encoded anew.

    Raises:
        InvalidImage: as `open_image` does.
    """
    with opened(data, max_pixels=max_pixels, max_file_bytes=max_file_bytes) as image:
        if image.format != "PNG":
            return None
        load(image)
        return bare_png(data) if turn_of(image) is None else None


def size_in(source: bytes | Path, *, max_pixels: int, max_file_bytes: int) -> tuple[int, int]:
    """Width and height by the header alone, not turned upright."""
    with opened(source, max_pixels=max_pixels, max_file_bytes=max_file_bytes) as image:
        return image.size


def load(image: ImageFile) -> None:
    try:
        image.load()
    except Exception as error:
        raise InvalidImage(f"the {image.format} is cut short or damaged ({error}); send the whole file") from error


@contextmanager
def opened(source: bytes | Path, *, max_pixels: int, max_file_bytes: int) -> Generator[ImageFile, None, None]:
    """The picture with its header read and its size checked, but not yet decoded."""
    data = read_bounded(source, max_file_bytes)
    kind = recognise(data)
    too_large = f"pixels, and at most {max_pixels:,} are opened; send a smaller picture"
    try:
        image = Image.open(BytesIO(data), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidImage(f"the {kind} declares too many {too_large} ({error})") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"the {kind} has a damaged or empty header; {WANTED}") from error
    except Exception as error:  # Pillow's parsers raise whatever they trip over
        raise InvalidImage(f"the {kind} is damaged or hostile ({error}); save it anew, without metadata") from error
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
            raise InvalidImage(f"{source} is not a file; {WANTED}")
        try:
            with open_regular(source) as file:
                data = file.read(max_file_bytes + 1)
        except OSError as error:
            raise InvalidImage(f"{source} cannot be read: {error.strerror}") from error
    if not data:
        raise InvalidImage(f"the file is empty; {WANTED}")
    if len(data) > max_file_bytes:
        raise InvalidImage(f"the file is larger than the {max_file_bytes:,} bytes that are opened; send a smaller one")
    return data


def recognise(data: bytes) -> Literal["PNG", "JPEG", "WEBP", "GIF"]:
    """The format by its first bytes, whatever the file is called."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        # A marker cannot occur inside a scan, so this counts scans, and a few bytes of thumbnails at most.
        if data.count(b"\xff\xda") > MAX_SCANS:
            raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans, which no camera writes; save it anew")
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[4:8] == b"ftyp":
        raise InvalidImage(f"the file looks like HEIC, AVIF or a video; {WANTED}")
    name = next((name for start, name in FOREIGN.items() if data.startswith(start)), None)
    raise InvalidImage(f"the file {'is not a picture' if name is None else f'looks like {name}'}; {WANTED}")


def upright(image: Image.Image) -> Image.Image:
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What its EXIF orientation asks for; EXIF that cannot be read asks for nothing."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  a picture is not refused for broken EXIF, and Pillow breaks on it in many ways
        return None


def without_extras(image: Image.Image, mode: Literal["RGB", "RGBA"]) -> Image.Image:
    """As 8-bit RGB or RGBA."""
    if image.mode == "I;16":
        # Pillow's own conversion clips at 255; the high byte is what it takes of 16-bit RGB.
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert(mode)
    clear = image.convert("RGBA")
    return clear if mode == "RGBA" else over_white(clear)


def over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
