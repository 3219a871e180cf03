"""A picture and its spec as a file that says how it was made.

                  PNG                         JPEG and WebP
    parameters    text chunk `parameters`     EXIF UserComment, UTF-16        what AUTOMATIC1111 and most viewers read
    our record    text chunk `safelight`      XMP `safelight:record`          JSON: the spec, exactly, and its digest
    source type   XMP `Iptc4xmpExt:DigitalSourceType`                         IPTC's words for "made by a model"

`minimal` leaves out everything with a prompt in it, which in some places is personal data. A JPEG holds 64 KB of EXIF
and as much XMP: where a very long prompt does not fit, the JPEG says the minimum.
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
    """Of JPEG and WebP, 1 to 100."""
    metadata: Detail = "full"

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.format]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNotes:
    """What a file says of itself, before it is put where its format keeps such things."""

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
    """The file; `version` is the safelight that drew it, and `lora_hashes` what others call its LoRAs' files."""
    if not 1 <= encoding.quality <= 100:
        raise UnsupportedOption("quality", f"{encoding.quality} is not between 1 and 100")
    longest = MAX_SIDE[encoding.format]
    if max(image.size) > longest:
        raise UnsupportedOption("format", f"{encoding.format} holds at most {longest} pixels a side; use png")
    notes = take_notes(spec, version=version, detail=encoding.metadata, lora_hashes=lora_hashes)
    file = BytesIO()
    match encoding.format:
        case "png":
            image.save(file, "PNG", pnginfo=png_info(notes))
        case "jpeg":
            flat = over_white(image.convert("RGBA")) if image.has_transparency_data else image.convert("RGB")
            if max(len(exif(notes)), len(packet(notes))) > JPEG_SEGMENT_BYTES:
                notes = take_notes(spec, version=version, detail="minimal")
            flat.save(file, "JPEG", quality=encoding.quality, exif=exif(notes), xmp=packet(notes))
        case "webp":
            image.save(file, "WEBP", quality=encoding.quality, exif=exif(notes), xmp=packet(notes))
    return file.getvalue()


def encode_plain(image: Image.Image) -> bytes:
    """A PNG that says nothing: for pictures that jobs start from."""
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def take_notes(
    spec: Denoised | Upscale, *, version: str, detail: Detail, lora_hashes: Mapping[str, str] | None = None
) -> FileNotes:
    if detail == "none":
        return FileNotes()
    record: dict[str, Any] = {"version": version, "spec_digest": spec.digest()}
    if isinstance(spec, Upscale):
        # The picture may or may not have come from a model: its own file says.
        source_type = parameters = ""
    else:
        record |= {"model_digest": spec.model_digest, "determinism": spec.determinism}
        made_from_words = isinstance(spec, TextToImage)
        source_type = "trainedAlgorithmicMedia" if made_from_words else "compositeWithTrainedAlgorithmicMedia"
        parameters = write_infotext(spec, version=version, lora_hashes=lora_hashes)
    if detail == "full":
        record["spec"] = spec.model_dump(mode="json")
    return FileNotes(
        record=json.dumps(record), parameters=parameters if detail == "full" else "", source_type=source_type
    )


def png_info(notes: FileNotes) -> PngInfo:
    info = PngInfo()
    if notes.parameters:
        info.add_text("parameters", notes.parameters)
    if notes.record:
        info.add_text("safelight", notes.record)
    if notes.source_type:
        info.add_itxt(
            "XML:com.adobe.xmp", xmp.packet({"Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE + notes.source_type})
        )
    return info


def exif(notes: FileNotes) -> bytes:
    if not notes.parameters:
        return b""
    tags = Image.Exif()
    comment = b"UNICODE\0" + notes.parameters.encode("utf-16-be")
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return tags.tobytes()


def packet(notes: FileNotes) -> bytes:
    elements = {RECORD: notes.record} if notes.record else {}
    if notes.source_type:
        elements["Iptc4xmpExt:DigitalSourceType"] = SOURCE_TYPE + notes.source_type
    return xmp.packet(elements).encode() if elements else b""
