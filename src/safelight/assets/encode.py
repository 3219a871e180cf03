"""Encode an image as a file with its spec as metadata.

                  PNG                         JPEG and WebP
    parameters    text chunk `parameters`     EXIF UserComment, UTF-16        read by AUTOMATIC1111 and most viewers
    our record    text chunk `safelight`      XMP `safelight:record`          JSON: the exact spec, and its digest
    source type   XMP `Iptc4xmpExt:DigitalSourceType`                         IPTC's term for "made by a model"

`minimal` leaves out everything that contains a prompt, which can be personal data. A JPEG holds 64 KB of EXIF and as
much XMP: if a very long prompt does not fit, the JPEG gets the minimal metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from safelight.assets import xmp
from safelight.assets.infotext import write_infotext
from safelight.errors import UnsupportedOption
from safelight.imaging.open_image import over_white
from safelight.spec import Denoised, TextToImage, Upscale

Format = Literal["png", "jpeg", "webp"]
Detail = Literal["full", "minimal", "none"]

SUFFIXES: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MAX_SIDE: dict[Format, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
JPEG_SEGMENT_BYTES = 65_000
"""64 KB, less the segment's own header."""
RECORD = "safelight:record"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    format: Format = "png"
    quality: int = 90
    """For JPEG and WebP, 1 to 100."""
    metadata: Detail = "full"

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.format]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedMetadata:
    """The metadata of a file, independent of the file's format."""

    record: str = ""
    parameters: str = ""
    source_type: str = ""


def encode(
    image: Image.Image,
    spec: Denoised | Upscale,
    encoding: Encoding,
    *,
    version: str,
    lora_hashes: Mapping[str, str] | None = None,
) -> bytes:
    """Return the file's bytes.

    Args:
        version: the version of safelight that made the image.
        lora_hashes: AUTOMATIC1111's hashes of the LoRA files, by our digests.
    """
    if not 1 <= encoding.quality <= 100:
        raise UnsupportedOption("quality", f"{encoding.quality} is not between 1 and 100")
    max_side = MAX_SIDE[encoding.format]
    if max(image.size) > max_side:
        raise UnsupportedOption("format", f"{encoding.format} holds at most {max_side} pixels a side; use png")
    metadata = build_metadata(spec, version=version, detail=encoding.metadata, lora_hashes=lora_hashes)
    file = BytesIO()
    match encoding.format:
        case "png":
            image.save(file, "PNG", pnginfo=png_info(metadata))
        case "jpeg":
            rgb = over_white(image.convert("RGBA")) if image.has_transparency_data else image.convert("RGB")
            if max(len(exif(metadata)), len(packet(metadata))) > JPEG_SEGMENT_BYTES:
                metadata = build_metadata(spec, version=version, detail="minimal")
            rgb.save(file, "JPEG", quality=encoding.quality, exif=exif(metadata), xmp=packet(metadata))
        case "webp":
            image.save(file, "WEBP", quality=encoding.quality, exif=exif(metadata), xmp=packet(metadata))
    return file.getvalue()


def encode_plain(image: Image.Image) -> bytes:
    """Encode a PNG without metadata, for the input images of jobs."""
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def build_metadata(
    spec: Denoised | Upscale, *, version: str, detail: Detail, lora_hashes: Mapping[str, str] | None = None
) -> EmbeddedMetadata:
    if detail == "none":
        return EmbeddedMetadata()
    record: dict[str, Any] = {"version": version, "spec_digest": spec.digest()}
    if isinstance(spec, Upscale):
        # The upscaled image may or may not have come from a model: its own file has that metadata.
        source_type = parameters = ""
    else:
        record |= {"model_digest": spec.model_digest, "determinism": spec.determinism}
        from_text = isinstance(spec, TextToImage)
        source_type = "trainedAlgorithmicMedia" if from_text else "compositeWithTrainedAlgorithmicMedia"
        parameters = write_infotext(spec, version=version, lora_hashes=lora_hashes)
    if detail == "full":
        record["spec"] = spec.model_dump(mode="json")
    return EmbeddedMetadata(
        record=json.dumps(record), parameters=parameters if detail == "full" else "", source_type=source_type
    )


def png_info(metadata: EmbeddedMetadata) -> PngInfo:
    info = PngInfo()
    if metadata.parameters:
        info.add_text("parameters", metadata.parameters)
    if metadata.record:
        info.add_text("safelight", metadata.record)
    if metadata.source_type:
        info.add_itxt(
            "XML:com.adobe.xmp", xmp.packet({"Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE + metadata.source_type})
        )
    return info


def exif(metadata: EmbeddedMetadata) -> bytes:
    if not metadata.parameters:
        return b""
    tags = Image.Exif()
    comment = b"UNICODE\0" + metadata.parameters.encode("utf-16-be")
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return tags.tobytes()


def packet(metadata: EmbeddedMetadata) -> bytes:
    elements = {RECORD: metadata.record} if metadata.record else {}
    if metadata.source_type:
        elements["Iptc4xmpExt:DigitalSourceType"] = SOURCE_TYPE + metadata.source_type
    return xmp.packet(elements).encode() if elements else b""
