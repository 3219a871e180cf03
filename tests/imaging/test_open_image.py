import io
import pickle
import struct
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.assets.files import chunk, png, saved

from safelight.errors import InvalidImage
from safelight.imaging.open_image import open_image, size_in
from safelight.settings import Settings

RED = Image.new("RGB", (6, 4), (200, 10, 20))
NOISE = Image.effect_noise((64, 48), 80).convert("RGB")


def opened(source: bytes | Path, *, max_pixels: int = 1_000_000, max_file_bytes: int = 5_000_000) -> Image.Image:
    return open_image(source, max_pixels=max_pixels, max_file_bytes=max_file_bytes, trusted=True)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF"])
def test_pictures_open_whatever_they_are_called(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(saved(RED, kind))
    for picture in (opened(path), opened(path.read_bytes())):
        assert (picture.mode, picture.size) == ("RGB", (6, 4))
        # JPEG, WebP and AVIF are lossy: a flat colour moves by a few levels at most.
        assert all(abs(a - b) <= 8 for a, b in zip(picture.getpixel((2, 2)), (200, 10, 20), strict=True))


def test_nothing_but_pixels_comes_in() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    picture = opened(saved(RED, "PNG", exif=exif, icc_profile=b"profile", dpi=(72, 72)))
    assert not picture.info
    assert not picture.getexif()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    others = [Image.new("RGB", (6, 4), colour) for colour in ("green", "blue")]
    data = saved(RED, kind, save_all=True, append_images=others, **({"lossless": True} if kind == "WEBP" else {}))
    assert opened(data).getpixel((1, 1)) == (200, 10, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (3, 2))
    picture.putpixel((0, 0), (255, 255, 255))
    turned = opened(saved(picture, "PNG", exif=exif))
    # Where EXIF 2.32 puts the first pixel of the file once the picture stands upright.
    corner = {1: (0, 0), 2: (2, 0), 3: (2, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 2), 8: (0, 2)}[orientation]
    assert turned.size == ((3, 2) if orientation < 5 else (2, 3))
    assert turned.getpixel(corner) == (255, 255, 255)


def test_broken_exif_does_not_refuse_a_picture() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        with warnings.catch_warnings(action="ignore"):
            assert opened(saved(RED, "JPEG", exif=exif)).size == (6, 4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_or_rgba(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    source = Image.new(mode, (4, 4)) if mode == "PA" else Image.new("L", (4, 4), 255).convert(mode)
    data = saved(source.convert("LA") if mode == "PA" else source, kind)
    for wanted in ("RGB", "RGBA"):
        assert open_image(data, max_pixels=100, max_file_bytes=10_000, mode=wanted).mode == wanted


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = (0, 255, 256, 32768, 65535)
    grey = png(5, 1, depth=16, colour=0, rows=b"\0" + struct.pack(">5H", *values))
    assert [opened(grey).getpixel((x, 0)) for x in range(5)] == [(value >> 8,) * 3 for value in values]
    rgb = png(1, 1, depth=16, colour=2, rows=b"\0" + struct.pack(">3H", 256, 32768, 65535))
    assert opened(rgb).getpixel((0, 0)) == (1, 128, 255)


def test_what_was_transparent_is_white_unless_alpha_is_wanted() -> None:
    picture = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    data = saved(picture, "PNG")
    flat = opened(data)
    assert (flat.getpixel((0, 0)), flat.getpixel((1, 0))) == ((255, 255, 255), (10, 20, 30))
    clear = open_image(data, max_pixels=100, max_file_bytes=1000, mode="RGBA")
    assert clear.getpixel((0, 0)) == (10, 20, 30, 0)


def test_a_palette_with_transparent_entries_is_flattened() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    flat = opened(saved(picture, "PNG", transparency=b"\x00\xff"))
    assert (flat.getpixel((0, 0)), flat.getpixel((1, 0))) == ((255, 255, 255), (40, 50, 60))


@pytest.mark.parametrize("transparency", [b"", chunk(b"tRNS", b"\0\xff"), chunk(b"tRNS", b"")])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_that_is_not_there_is_a_damaged_picture(depth: int, transparency: bytes) -> None:
    bare = png(2, 1, depth=depth, colour=3, rows=b"\0" + bytes((2 * depth + 7) // 8))
    header = 8 + 25  # the signature and IHDR
    data = bare[:header] + transparency + bare[header:]
    for mode in ("RGB", "RGBA"):
        with suppress(InvalidImage):  # Pillow takes some for grey
            assert open_image(data, max_pixels=100, max_file_bytes=10_000, mode=mode).mode == mode


def foreign() -> dict[str, tuple[bytes, str]]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(10_000_000))
    return {
        "empty": (b"", "the file is empty"),
        "zip bomb": (archive.getvalue(), "looks like ZIP"),
        "gzip": (b"\x1f\x8b" + bytes(20), "looks like gzip"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "looks like SVG"),
        "tiff": (saved(RED, "TIFF"), "looks like TIFF"),
        "eps": (saved(RED, "EPS"), "looks like PostScript"),
        "pdf": (b"%PDF-1.7", "looks like PDF"),
        "bmp": (saved(RED, "BMP"), "looks like BMP"),
        "heic": (b"\0\0\0\x18ftypheic", "looks like HEIC"),
        "video": (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1avif", "looks like HEIC or a video"),
        "pickle": (pickle.dumps(RED.tobytes()), "is not a picture"),
        "text": (b"hello", "is not a picture"),
        "wave": (b"RIFF\0\0\0\0WAVEfmt ", "is not a picture"),
    }


@pytest.mark.parametrize("name", foreign())
def test_other_file_types_are_refused_by_name(name: str, tmp_path: Path) -> None:
    data, reason = foreign()[name]
    path = tmp_path / "renamed.png"
    path.write_bytes(data)
    with pytest.raises(InvalidImage, match=f"{reason}.*; give a PNG, JPEG, WebP or GIF picture"):
        opened(path)


def test_a_missing_file_or_a_folder_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.png"):
        with pytest.raises(InvalidImage, match="is not a file"):
            opened(path)


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(saved(NOISE, "PNG"))
    for source in (path, path.read_bytes()):
        with pytest.raises(InvalidImage, match="larger than the 1,000 bytes"):
            opened(source, max_file_bytes=1000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF"])
def test_a_picture_over_the_limit_is_refused_by_its_header(kind: str) -> None:
    data = saved(NOISE, kind)
    assert opened(data, max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(InvalidImage, match="64x48, 3,072 pixels, and at most 3,071 are opened"):
        opened(data, max_pixels=64 * 48 - 1)


def test_an_avif_is_decoded_only_if_it_is_trusted() -> None:
    """Its decoder heeds the size in the stream, and not the one that the header declares and we check."""
    data = bytearray(saved(Image.new("RGB", (2000, 1000)), "AVIF"))
    size = data.index(b"ispe") + 8
    data[size : size + 8] = (8).to_bytes(4, "big") * 2
    for source in (bytes(data), saved(RED, "AVIF")):
        assert size_in(source, max_pixels=64, max_file_bytes=5000) in ((8, 8), (6, 4))
        with pytest.raises(InvalidImage, match="AVIF pictures are written, but not taken from others; give a PNG"):
            open_image(source, max_pixels=64, max_file_bytes=5000)


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    for side in (10_000, 50_000, 2**31 - 1):
        with pytest.raises(InvalidImage, match=r"at most 64,000,000 are opened|declares too many pixels"):
            opened(png(side, side), max_pixels=Settings.model_fields["max_pixels"].default)
    gif = bytearray(saved(RED, "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    with pytest.raises(InvalidImage, match="pixels"):
        opened(bytes(gif))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_compressed_text_bomb_is_refused(kind: bytes, where: str) -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\x01\0\0\0", b"iCCP": b"k\0\0"}[kind]
    extra = chunk(kind, head + bomb)
    with pytest.raises(InvalidImage, match="too large"):
        opened(png(4, 4, **{where: extra}))


def test_many_small_text_bombs_are_refused_together() -> None:
    one = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9))
    with pytest.raises(InvalidImage, match="Too much memory used in text chunks"):
        opened(png(4, 4, before=one * 70))


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = saved(NOISE, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(InvalidImage, match="more than 500 scans"):
        opened(data[:last] + data[last:-2] * 600 + data[-2:])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    data = saved(NOISE, kind)
    for length in (4, 16, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(InvalidImage):
            opened(data[:length])
    with pytest.raises(InvalidImage, match=r"cut short or damaged|damaged or"):
        opened(data[: len(data) // 2])


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(width: int, height: int) -> None:
    with pytest.raises(InvalidImage, match="damaged or empty header"):
        opened(png(width, height))


@settings(max_examples=300)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "AVIF", "GIF"]), st.data())
def test_a_damaged_picture_opens_or_is_refused_and_nothing_else(kind: str, data: st.DataObject) -> None:
    whole = bytearray(saved(NOISE.resize((16, 12)), kind))
    places = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=6)):
        whole[place] = value
    try:
        picture = opened(bytes(whole))
    except InvalidImage:
        return
    assert picture.mode == "RGB"
