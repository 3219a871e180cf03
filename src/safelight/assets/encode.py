"""Encode an image as a file with its spec as metadata.

                  PNG                         JPEG, WebP and AVIF
    parameters    text chunk `parameters`     EXIF UserComment, UTF-16        read by AUTOMATIC1111 and most viewers
    our record    text chunk `safelight`      XMP `safelight:record`          JSON: the exact spec, and its digest
    prompt        XMP `Iptc4xmpExt:AIPromptInformation`                       IPTC's
    marks         XMP, and a text chunk `AIGC`                                what the picture is (`trust/marks.py`)

`minimal` leaves out everything that contains a prompt, which can be personal data; `none` leaves out all but the marks.
A JPEG holds 64 KB of EXIF and as much XMP: if a very long prompt does not fit, the JPEG gets the minimal metadata.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from safelight.assets.infotext import write_infotext
from safelight.errors import UnsupportedOption
from safelight.imaging import xmp
from safelight.imaging.open_image import over_white
from safelight.spec import Denoised, Upscale

Format = Literal["png", "jpeg", "webp", "avif"]
Detail = Literal["full", "minimal", "none"]

SUFFIXES: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "avif": ".avif"}
MAX_SIDE: dict[Format, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383, "avif": 32_768}
"""What the format holds; of AVIF, what libavif opens again."""
JPEG_SEGMENT_BYTES = 65_000
"""64 KB, less the segment's own header."""
RECORD = "safelight:record"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    format: Format = "png"
    quality: int = 90
    """For JPEG, WebP and AVIF, 1 to 100."""
    metadata: Detail = "full"

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.format]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedMetadata:
    """The metadata of a file, independent of the file's format."""

    record: str = ""
    parameters: str = ""
    prompt: str = ""
    marks: Mapping[str, str] = field(default_factory=dict[str, str])


def encode(
    image: Image.Image,
    spec: Denoised | Upscale,
    encoding: Encoding,
    *,
    version: str,
    drawn: Mapping[str, Any] | None = None,
    marks: Mapping[str, str] | None = None,
    lora_hashes: Mapping[str, str] | None = None,
) -> bytes:
    """Return the file's bytes.

    Args:
        version: the version of safelight that made the image.
        drawn: what the record says of the pixels: `pixels` is `pixels_digest` of the picture as it was drawn,
            `watermark` the algorithm and key of the mark that they carry.
        marks: XMP elements that the file gets with any metadata, and with none.
        lora_hashes: AUTOMATIC1111's hashes of the LoRA files, by our digests.
    """
    if not 1 <= encoding.quality <= 100:
        raise UnsupportedOption("quality", f"{encoding.quality} is not between 1 and 100")
    max_side = MAX_SIDE[encoding.format]
    if max(image.size) > max_side:
        raise UnsupportedOption("format", f"{encoding.format} holds at most {max_side} pixels a side; use png")
    metadata = build_metadata(
        spec, encoding.metadata, version=version, drawn=drawn or {}, marks=marks or {}, lora_hashes=lora_hashes
    )
    if encoding.format == "jpeg" and max(len(exif(metadata)), len(packet(metadata))) > JPEG_SEGMENT_BYTES:
        metadata = build_metadata(spec, "minimal", version=version, drawn=drawn or {}, marks=marks or {})
    return write(image, encoding, metadata)


def write(image: Image.Image, encoding: Encoding, metadata: EmbeddedMetadata) -> bytes:
    file = BytesIO()
    match encoding.format:
        case "png":
            image.save(file, "PNG", pnginfo=png_info(metadata))
        case "jpeg":
            rgb = over_white(image.convert("RGBA")) if image.has_transparency_data else image.convert("RGB")
            rgb.save(file, "JPEG", quality=encoding.quality, exif=exif(metadata), xmp=packet(metadata))
        case "webp":
            image.save(file, "WEBP", quality=encoding.quality, exif=exif(metadata), xmp=packet(metadata))
        case "avif":
            image.save(file, "AVIF", quality=encoding.quality, exif=exif(metadata), xmp=packet(metadata))
    return file.getvalue()


def encode_marked(image: Image.Image, encoding: Encoding, marks: Mapping[str, str]) -> bytes:
    """Encode a picture that has no spec of its own, with XMP elements."""
    return write(image, encoding, EmbeddedMetadata(marks=marks))


def pixels_digest(image: Image.Image) -> str:
    """sha256 of mode, size and pixels, in hex: the same for the same picture in any format without loss."""
    head = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def encode_plain(image: Image.Image) -> bytes:
    """Encode a PNG without metadata, for the input images of jobs."""
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def build_metadata(
    spec: Denoised | Upscale,
    detail: Detail,
    *,
    version: str,
    drawn: Mapping[str, Any],
    marks: Mapping[str, str],
    lora_hashes: Mapping[str, str] | None = None,
) -> EmbeddedMetadata:
    if detail == "none":
        return EmbeddedMetadata(marks=marks)
    record: dict[str, Any] = {"version": version, "spec_digest": spec.digest(), **drawn}
    if not isinstance(spec, Upscale):
        record |= {"model_digest": spec.model_digest, "determinism": spec.determinism}
    if detail == "minimal":
        return EmbeddedMetadata(record=json.dumps(record), marks=marks)
    record["spec"] = spec.model_dump(mode="json")
    if isinstance(spec, Upscale):
        return EmbeddedMetadata(record=json.dumps(record), marks=marks)
    parameters = write_infotext(spec, version=version, lora_hashes=lora_hashes)
    return EmbeddedMetadata(record=json.dumps(record), parameters=parameters, prompt=spec.prompt, marks=marks)


def png_info(metadata: EmbeddedMetadata) -> PngInfo:
    info = PngInfo()
    if metadata.parameters:
        info.add_text("parameters", metadata.parameters)
    if metadata.record:
        info.add_text("safelight", metadata.record)
    if xmp.AIGC in metadata.marks:
        info.add_text("AIGC", metadata.marks[xmp.AIGC])
    if elements := public_elements(metadata):
        info.add_itxt("XML:com.adobe.xmp", xmp.packet(elements))
    return info


def exif(metadata: EmbeddedMetadata) -> bytes:
    if not metadata.parameters:
        return b""
    tags = Image.Exif()
    comment = b"UNICODE\0" + metadata.parameters.encode("utf-16-be")
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return tags.tobytes()


def packet(metadata: EmbeddedMetadata) -> bytes:
    record = {RECORD: metadata.record} if metadata.record else {}
    return xmp.packet(record | public_elements(metadata)).encode()


def public_elements(metadata: EmbeddedMetadata) -> dict[str, str]:
    """The XMP elements that are not ours."""
    return {**metadata.marks} | ({xmp.AI_PROMPT: metadata.prompt} if metadata.prompt else {})
