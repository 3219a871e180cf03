"""Read an image's generation metadata, in the dialect of any known program.

The texts of each file format are first renamed to those of PNG chunks (`texts_of`); then each dialect is tried in
turn. All input is untrusted: malformed metadata is ignored, and only a file that is not an image is an error.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from PIL import ExifTags
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import iTXt

from safelight.assets import comfyui, sampler_names
from safelight.assets.encode import RECORD
from safelight.assets.infotext import from_pairs, parse_infotext
from safelight.errors import InvalidRequest
from safelight.imaging import xmp
from safelight.imaging.open_image import open_checked
from safelight.spec import Denoised, Upscale, parse_spec

Producer = Literal["safelight", "automatic1111", "invokeai", "comfyui", "stable-diffusion.cpp", "unknown"]
MAX_CHARACTERS = 4_000_000
"""Maximum length of one text. A ComfyUI graph rarely has a tenth of it, and parsed JSON takes thirty times its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    producer: Producer
    prompt: str = ""
    negative_prompt: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of `spec.Draft`, for every producer; not validated against its limits."""
    raw: Mapping[str, str]
    """Every text in the file, under the name that PNG files give it."""
    spec: Denoised | Upscale | None = None
    """Only for our own images, and only if it matches its digest."""
    pixels: str = ""
    """Of our own images, `encode.pixels_digest` of what was drawn, before marks and compression."""
    watermark_key: str = ""
    """Of our own images, the id of the watermark's key, by their record."""


def read_metadata(source: bytes | Path, *, max_pixels: int, max_file_bytes: int) -> Metadata:
    with open_checked(source, max_pixels=max_pixels, max_file_bytes=max_file_bytes) as image:
        raw = texts_of(image)
    for dialect in (from_safelight, from_infotext, from_invokeai, from_comfyui):
        metadata = dialect(raw)
        if metadata is not None:
            return metadata
    return Metadata(producer="unknown", raw=raw)


def from_safelight(raw: Mapping[str, str]) -> Metadata | None:
    record = read_object(raw.get("safelight", ""))
    if "spec_digest" not in record:
        return None
    spec = None
    with suppress(InvalidRequest, RecursionError):
        if isinstance(record.get("spec"), dict):
            spec = parse_spec(record["spec"])
    if spec is None or spec.digest() != record["spec_digest"]:
        written = from_infotext(raw)
        if written is None:
            return Metadata(producer="safelight", raw=raw)
        return Metadata(
            producer="safelight",
            prompt=written.prompt,
            negative_prompt=written.negative_prompt,
            settings=written.settings,
            raw=raw,
        )
    pixels = record["pixels"] if isinstance(record.get("pixels"), str) else ""
    watermark = record.get("watermark")
    key = str(cast(dict[str, Any], watermark).get("key_id", "")) if isinstance(watermark, dict) else ""
    settings = spec.model_dump(mode="json", exclude={"task", "prompt", "negative_prompt", "model_digest"})
    if isinstance(spec, Upscale):
        return Metadata(producer="safelight", settings=settings, raw=raw, spec=spec, pixels=pixels, watermark_key=key)
    return Metadata(
        producer="safelight",
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        settings=settings,
        raw=raw,
        spec=spec,
        pixels=pixels,
        watermark_key=key,
    )


def from_infotext(raw: Mapping[str, str]) -> Metadata | None:
    text = raw.get("parameters", "")
    infotext = parse_infotext(text)
    # SwarmUI and others store their own JSON under the same name.
    if not text or (not infotext.pairs and text.lstrip().startswith("{")):
        return None
    settings = from_pairs(infotext.pairs)
    cpp = infotext.pairs.get("Version", "").startswith("stable-diffusion.cpp")
    if cpp and "sampler" in settings:
        settings["sampler"] = sampler_names.from_identifier(settings["sampler"])
    return Metadata(
        producer="stable-diffusion.cpp" if cpp else "automatic1111",
        prompt=infotext.prompt,
        negative_prompt=infotext.negative_prompt,
        settings=settings,
        raw=raw,
    )


def from_invokeai(raw: Mapping[str, str]) -> Metadata | None:
    record = read_object(raw.get("invokeai_metadata", ""))
    if not record:
        return None
    names = {
        "seed": "seed",
        "steps": "steps",
        "width": "width",
        "height": "height",
        "cfg_scale": "guidance",
        "cfg_rescale_multiplier": "guidance_rescale",
        "strength": "strength",
    }
    settings = {ours: record[theirs] for theirs, ours in names.items() if is_number(record.get(theirs))}
    # InvokeAI counts the skipped layers.
    if type(skipped := record.get("clip_skip")) is int:
        settings["clip_skip"] = skipped + 1
    if isinstance(record.get("scheduler"), str):
        settings["sampler"] = sampler_names.from_identifier(record["scheduler"])
    match record.get("model"):
        case {"name": str(name)} | {"model_name": str(name)}:
            settings["model"] = name
        case _:
            pass
    prompts = (record.get("positive_prompt"), record.get("negative_prompt"))
    prompt, negative = (text if isinstance(text, str) else "" for text in prompts)
    return Metadata(producer="invokeai", prompt=prompt, negative_prompt=negative, settings=settings, raw=raw)


def from_comfyui(raw: Mapping[str, str]) -> Metadata | None:
    found = comfyui.read_graph(read_object(raw.get("prompt", "")))
    if found is None:
        return None
    prompts, settings = found
    return Metadata(
        producer="comfyui",
        prompt=prompts.prompt,
        negative_prompt=prompts.negative_prompt,
        settings=settings,
        raw=raw,
    )


def texts_of(image: ImageFile) -> dict[str, str]:
    """Return every text in the file by its PNG name, such as `parameters` for EXIF's UserComment."""
    if image.format == "PNG":
        # Text may follow the pixels, and a damaged file may still have text before them.
        with suppress(Exception):
            image.load()
    info = cast(dict[str, Any], image.info)
    texts = {name: read_latin(text) for name, text in info.items() if isinstance(text, str)}
    packet = info.get("xmp", b"")
    if isinstance(packet, bytes) and len(packet) <= MAX_CHARACTERS:
        for element, name in {RECORD: "safelight", "sdcpp:parameters": "parameters"}.items():
            found = xmp.element(packet.decode(errors="replace"), element)
            if found is not None:
                texts.setdefault(name, found)
    with suppress(Exception):  # Pillow's EXIF reader can raise any exception
        for name, text in exif_texts(image).items():
            texts.setdefault(name, text)
    return {name: text for name, text in texts.items() if len(text) <= MAX_CHARACTERS}


def exif_texts(image: ImageFile) -> dict[str, str]:
    exif = image.getexif()
    texts: dict[str, str] = {}
    for tag in (ExifTags.Base.Model, ExifTags.Base.Make, ExifTags.Base.ImageDescription):
        name, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and name in ("prompt", "workflow"):
            texts[name] = text
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes):
        texts["parameters"] = read_comment(comment)
    elif isinstance(comment, str):
        texts["parameters"] = comment
    return texts


def read_comment(comment: bytes) -> str:
    """Decode a UserComment: eight bytes name the encoding; UTF-16 may have either byte order, without a BOM."""
    name, text = comment[:8], comment[8:]
    match name:
        case b"UNICODE\0":
            # Every infotext has spaces and letters whose high byte is 0.
            order = "utf-16-le" if text[1::2].count(0) > text[0::2].count(0) else "utf-16-be"
            return text.decode(order, errors="replace").removeprefix("\ufeff")
        case b"ASCII\0\0\0" | b"\0\0\0\0\0\0\0\0":
            return text.decode(errors="replace").strip("\0")
        case _:
            return comment.decode(errors="replace").strip("\0")


def read_latin(text: str) -> str:
    """Decode a tEXt chunk: by the PNG standard it is Latin-1, but stable-diffusion.cpp and others write UTF-8."""
    if isinstance(text, iTXt):
        return str(text)
    with suppress(UnicodeError):
        return text.encode("latin-1").decode("utf-8")
    return text


def read_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; return an empty one if the text is not valid."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def is_number(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))
