"""What of an uploaded PNG is kept: its pixels, bit for bit, and nothing else."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from safelight.imaging.bare_png import MAX_BYTES_PER_PIXEL, SLACK_BYTES, bare_png
from safelight.imaging.open_image import bare_file, open_image

LIMITS = {"max_pixels": 10**6, "max_file_bytes": 10**6}
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]


def picture(mode: str, seed: int = 0, size: tuple[int, int] = (9, 7)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(values, "RGBA").convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **given: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **given)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def before_pixels(file: bytes, *chunks: bytes) -> bytes:
    at = file.index(b"IDAT") - 4
    return file[:at] + b"".join(chunks) + file[at:]


@given(st.sampled_from(MODES), st.integers(0, 2**32), st.booleans())
def test_a_stripped_file_decodes_to_the_same_image(mode: str, seed: int, transparent: bool) -> None:
    given: dict[str, Any] = {"transparency": 3} if transparent and mode in ("P", "L") else {}
    file = file_of(picture(mode, seed), **given)
    kept = bare_file(file, **LIMITS)
    assert kept == file, "there is nothing in it to leave behind"
    for wanted in ("RGB", "RGBA"):
        assert open_image(kept, mode=wanted, **LIMITS) == open_image(file, mode=wanted, **LIMITS)


def test_metadata_and_hidden_data_are_removed() -> None:
    info = PngInfo()
    info.add_text("parameters", "SECRET prompt")
    info.add_itxt("XML:com.adobe.xmp", "<x>SECRET place</x>")
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "SECRET name"
    plain = file_of(picture("RGB"))
    told = file_of(picture("RGB"), pnginfo=info, exif=exif, icc_profile=b"SECRET profile", dpi=(72, 72))
    told = before_pixels(told, chunk(b"seCr", b"SECRET chunk")) + b"PK\x03\x04SECRET archive"
    kept = bare_file(told, **LIMITS)
    assert kept == plain
    assert told.count(b"SECRET") >= 5


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return file_of(picture("RGB"), exif=exif)


def test_an_upright_picture_is_kept_and_a_turned_one_is_not() -> None:
    assert bare_file(turned(1), **LIMITS) == file_of(picture("RGB"))
    assert bare_file(turned(6), **LIMITS) is None


def test_an_animation_is_not_kept() -> None:
    frames = [picture("RGB", seed) for seed in range(3)]
    assert bare_file(file_of(frames[0], save_all=True, append_images=frames[1:]), **LIMITS) is None


def test_a_chunk_that_a_reader_must_know_is_not_dropped() -> None:
    assert bare_png(before_pixels(file_of(picture("RGB")), chunk(b"CRIT", b""))) is None


def test_a_stream_longer_than_its_pixels_hides_something() -> None:
    image = picture("RGB")
    hidden = chunk(b"IDAT", b"x" * (MAX_BYTES_PER_PIXEL * image.width * image.height + SLACK_BYTES))
    file = file_of(image)
    end = file.index(b"IEND") - 4
    assert bare_png(file[:end] + hidden + file[end:]) is None


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_other_formats_are_encoded_anew(kind: str) -> None:
    assert bare_file(file_of(picture("RGB"), kind), **LIMITS) is None


@given(st.binary(max_size=200))
def test_no_file_raises_an_unexpected_error(rest: bytes) -> None:
    file = file_of(picture("RGB"))
    bare_png(file[:33] + rest)
    bare_png(file[:-12] + rest)
