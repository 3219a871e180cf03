"""AUTOMATIC1111's infotext: the metadata text that it writes into images and most programs read.

    a red apple
    Negative prompt: blurry
    Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: mini, ...

Settings survive a round trip exactly. Prompts lose spaces at the ends of their lines, as in AUTOMATIC1111 itself, and
a prompt line that begins with "Negative prompt:" starts the negative prompt, because the format has no escape for it.
Our own record beside it (`encode.py`) is exact.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from safelight.assets import sampler_names
from safelight.prompts.lora_tags import with_tags
from safelight.spec import Denoised, Edit, ImageToImage, Inpaint, Refined, TextToImage
from safelight.spec.effects import PinnedControl

# The pattern of AUTOMATIC1111's infotext_utils.py, without the parts that make it quadratic on long lines: unbounded
# names, and spaces before them.
PAIR = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"
RESIZE_MODES = {"stretch": "Just Resize", "crop": "Crop and Resize", "pad": "Resize and Fill"}
CONTROL_MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
SOFT_EDGE = "as it is"
UPSCALERS = {
    "lanczos": "Lanczos",
    "latent": "Latent (bicubic)",
    "latent-antialiased": "Latent (bicubic antialiased)",
    "latent-bilinear": "Latent",
    "latent-bilinear-antialiased": "Latent (antialiased)",
    "latent-nearest": "Latent (nearest)",
    "latent-nearest-exact": "Latent (nearest-exact)",
    "realesrgan-x4plus": "R-ESRGAN 4x+",
    "realesrgan-x4plus-anime": "R-ESRGAN 4x+ Anime6B",
    "realesr-animevideov3": "R-ESRGAN AnimeVideo",
}
UPSCALERS_BY_LABEL = {theirs: ours for ours, theirs in UPSCALERS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Infotext:
    prompt: str
    negative_prompt: str
    pairs: Mapping[str, str]
    """Settings with AUTOMATIC1111's labels."""


def write_infotext(spec: Denoised, *, version: str, lora_hashes: Mapping[str, str] | None = None) -> str:
    """Return the infotext; `lora_hashes` maps our digests of LoRA files to AUTOMATIC1111's hashes."""
    prompt = storable(with_tags(spec.prompt, spec.loras))
    settings_found = to_pairs(spec, version=version, lora_hashes=lora_hashes)
    negative = f"\n{NEGATIVE} {storable(spec.negative_prompt)}" if spec.negative_prompt else ""
    pairs = ", ".join(f"{name}: {quote(storable(value))}" for name, value in settings_found.items())
    return f"{prompt}{negative}\n{pairs}".strip()


def parse_infotext(text: str) -> Infotext:
    """Parse any text: a last line with fewer than three settings belongs to the prompt."""
    *lines, last = text.strip().split("\n")
    settings_found: list[tuple[str, str]] = PAIR.findall(last)
    if len(settings_found) < 3:
        lines, settings_found = [*lines, last], []
    lines = [line.strip() for line in lines]
    start = next((index for index, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE)
    return Infotext(
        prompt="\n".join(lines[:start]).strip("\n"),
        negative_prompt=negative.strip(" \n"),
        pairs={name: unquote(value) for name, value in settings_found},
    )


def to_pairs(spec: Denoised, *, version: str, lora_hashes: Mapping[str, str] | None = None) -> dict[str, str]:
    sampler, schedule = sampler_names.split(spec.sampler)
    pairs = {
        "Steps": str(spec.steps),
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": format_number(spec.guidance),
        "Seed": str(spec.seed),
        "Size": f"{spec.width}x{spec.height}",
        "Model hash": spec.model_digest[:10],
        "Model": spec.model,
    }
    if isinstance(spec, ImageToImage | Inpaint | Edit):
        pairs["Denoising strength"] = format_number(spec.strength)
    elif isinstance(spec, TextToImage) and spec.highres is not None:
        pairs["Denoising strength"] = format_number(spec.highres.strength)
    if isinstance(spec, Edit):
        pairs["Image CFG scale"] = format_number(spec.image_guidance)
    if spec.clip_skip > 1:
        pairs["Clip skip"] = str(spec.clip_skip)
    pairs["RNG"] = "CPU"
    if isinstance(spec, TextToImage) and spec.highres is not None:
        pairs["Hires upscale"] = format_number(spec.highres.scale)
        if spec.highres.steps is not None:
            pairs["Hires steps"] = str(spec.highres.steps)
        pairs["Hires upscaler"] = UPSCALERS[spec.highres.upscaler]
    if isinstance(spec, Inpaint):
        pairs["Mask blur"] = format_number(spec.mask_blur)
        if spec.soft_mask:
            pairs["Mask edge"] = SOFT_EDGE
        if spec.mask_invert:
            pairs["Mask mode"] = "Inpaint not masked"
        if spec.only_masked:
            pairs["Inpaint area"] = "Only masked"
            pairs["Masked area padding"] = str(spec.padding)
    if spec.embeddings:
        pairs["TI hashes"] = ", ".join(f"{pinned.name}: {pinned.digest[:12]}" for pinned in spec.embeddings)
    for place, use in enumerate(spec.controls):
        pairs[f"ControlNet {place}"] = control_pairs(use)
    if spec.vae:
        pairs |= {"VAE hash": spec.vae.digest[:10], "VAE": spec.vae.name}
    if hashed := [lora for lora in spec.loras if lora.digest in (lora_hashes or {})]:
        pairs["Lora hashes"] = ", ".join(
            f"{re.sub('[:,]', '', lora.name)}: {(lora_hashes or {})[lora.digest]}" for lora in hashed
        )
    # AUTOMATIC1111 has no such settings, and ignores unknown ones.
    if spec.text_encoder:
        pairs["Text encoder"] = spec.text_encoder.name
    if spec.guidance_rescale:
        pairs["CFG rescale"] = format_number(spec.guidance_rescale)
    if isinstance(spec, Refined) and spec.refiner:
        pairs["Refiner"] = f"{spec.refiner.model} [{spec.refiner.digest[:10]}]"
        pairs["Refiner switch at"] = format_number(spec.refiner.switch)
    if spec.regions:
        regions = [region.model_dump(exclude_defaults=True) for region in spec.regions]
        pairs["Regions"] = json.dumps(regions, ensure_ascii=False)
    if spec.pag_scale:
        pairs["PAG scale"] = format_number(spec.pag_scale)
        if spec.pag_layers != ("mid",):
            pairs["PAG layers"] = ", ".join(spec.pag_layers)
    if spec.sag_scale:
        pairs["SAG scale"] = format_number(spec.sag_scale)
    if spec.effects:
        pairs["Effects"] = json.dumps(spec.effects)
    if spec.freeu:
        pairs["FreeU"] = ", ".join(map(format_number, spec.freeu.model_dump().values()))
    if (spec.guidance_interval.start, spec.guidance_interval.end) != (0, 1):
        pairs["Guidance start"] = format_number(spec.guidance_interval.start)
        pairs["Guidance end"] = format_number(spec.guidance_interval.end)
    return pairs | {"Version": f"safelight {version}"}


def control_pairs(use: PinnedControl) -> str:
    """Return the settings in the format of the ControlNet extension; the images are only in our own record."""
    labels = {
        "Module": use.preprocessor,
        "Model": f"{use.model} [{use.digest[:8]}]",
        "Weight": format_number(use.weight),
        "Resize Mode": RESIZE_MODES[use.fit],
        "Guidance Start": format_number(use.start),
        "Guidance End": format_number(use.end),
        "Control Mode": CONTROL_MODES[use.mode],
    }
    return ", ".join(f"{label}: {value}" for label, value in labels.items())


def from_pairs(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Convert to fields of `spec.Draft`; invalid and unknown settings are left out."""

    def convert(*fields: tuple[str, str, Callable[[str], Any]]) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        for label, name, kind in fields:
            with suppress(KeyError, ValueError, OverflowError):
                converted[name] = kind(pairs[label])
        return converted

    settings = convert(
        ("Steps", "steps", int),
        ("CFG scale", "guidance", finite),
        ("CFG rescale", "guidance_rescale", finite),
        ("Refiner", "refiner", without_hash),
        ("Refiner switch at", "refiner_switch", finite),
        ("PAG scale", "pag_scale", finite),
        ("PAG layers", "pag_layers", split_list),
        ("SAG scale", "sag_scale", finite),
        ("FreeU", "freeu", factors),
        ("Regions", "regions", json.loads),
        ("Effects", "effects", json_object),
        ("Seed", "seed", int),
        ("Model", "model", str),
        ("Clip skip", "clip_skip", int),
        ("VAE", "vae", str),
        ("Text encoder", "text_encoder", str),
        ("Denoising strength", "strength", finite),
        ("Image CFG scale", "image_guidance", finite),
        ("Mask blur", "mask_blur", finite),
        ("Masked area padding", "padding", int),
    )
    if pairs:
        settings.setdefault("clip_skip", 1)
    if size := re.fullmatch(r"(\d{1,9})x(\d{1,9})", pairs.get("Size", "")):
        settings |= {"width": int(size[1]), "height": int(size[2])}
    if sampler := pairs.get("Sampler"):
        settings["sampler"] = sampler_names.join(sampler, pairs.get("Schedule type"))
    if pairs.get("Mask mode") == "Inpaint not masked":
        settings["mask_invert"] = True
    if pairs.get("Mask edge") == SOFT_EDGE:
        settings["soft_mask"] = True
    if pairs.get("Inpaint area") == "Only masked":
        settings["only_masked"] = True
    if interval := convert(("Guidance start", "start", finite), ("Guidance end", "end", finite)):
        settings["guidance_interval"] = interval
    if "Hires upscale" in pairs:
        highres = convert(
            ("Hires upscale", "scale", finite),
            ("Hires steps", "steps", int),
            ("Hires upscaler", "upscaler", UPSCALERS_BY_LABEL.__getitem__),
        )
        if "strength" in settings:
            highres["strength"] = settings.pop("strength")
        # In AUTOMATIC1111, 0 means "as many steps as in the first pass".
        settings["highres"] = {name: value for name, value in highres.items() if value}
    return settings


def without_hash(title: str) -> str:
    return re.sub(r" \[[0-9a-f]{10}\]$", "", title)


def split_list(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def factors(text: str) -> dict[str, float]:
    return dict(zip(("b1", "b2", "s1", "s2"), map(finite, text.split(",")), strict=True))


def json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)  # noqa: TRY004  as every converter
    return cast("dict[str, Any]", value)


def quote(text: str) -> str:
    """Quote by AUTOMATIC1111's rule; outer spaces and quotes too, which would not survive a round trip."""
    plain = not any(mark in text for mark in ",:\n") and text == text.strip() and not text.startswith('"')
    return text if plain else json.dumps(text, ensure_ascii=False)


def unquote(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def format_number(value: float) -> str:
    """Format 7.0 as 7, and other values with all digits."""
    return str(int(value)) if value == int(value) else repr(value)


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def storable(text: str) -> str:
    """Replace characters that text chunks cannot hold: NUL and lone surrogates."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)
