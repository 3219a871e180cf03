"""The text that AUTOMATIC1111 writes into pictures, and most programs read.

    a red apple
    Negative prompt: blurry
    Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: mini, ...

Settings come back exactly. Prompts come back but for spaces at the ends of their lines, as in AUTOMATIC1111 itself,
and a line of the prompt that begins with "Negative prompt:" begins the negative prompt, for the format has no way to
say otherwise. Our own record beside it (`encode.py`) is exact.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from safelight.assets import sampler_names
from safelight.prompts.lora_tags import with_tags
from safelight.spec import Denoised, Edit, ImageToImage, Inpaint, Refined, TextToImage
from safelight.spec.effects import PinnedControl

# The pattern of AUTOMATIC1111's infotext_utils.py, but for what made it quadratic on long lines: unbounded names, and
# spaces before them.
PAIR = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"
RESIZE_MODES = {"stretch": "Just Resize", "crop": "Crop and Resize", "pad": "Resize and Fill"}
CONTROL_MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
SOFT = "as it is"
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
OUR_UPSCALERS = {theirs: ours for ours, theirs in UPSCALERS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Infotext:
    prompt: str
    negative_prompt: str
    pairs: Mapping[str, str]
    """In AUTOMATIC1111's words."""


def write_infotext(spec: Denoised, *, version: str, lora_hashes: Mapping[str, str] | None = None) -> str:
    """`lora_hashes` is what AUTOMATIC1111 calls the LoRAs' files, by our digests of them."""
    prompt = storable(with_tags(spec.prompt, spec.loras))
    found = to_pairs(spec, version=version, lora_hashes=lora_hashes)
    negative = f"\n{NEGATIVE} {storable(spec.negative_prompt)}" if spec.negative_prompt else ""
    pairs = ", ".join(f"{name}: {quote(storable(value))}" for name, value in found.items())
    return f"{prompt}{negative}\n{pairs}".strip()


def parse_infotext(text: str) -> Infotext:
    """Anything is a prompt: a last line with fewer than three settings belongs to it."""
    *lines, last = text.strip().split("\n")
    found: list[tuple[str, str]] = PAIR.findall(last)
    if len(found) < 3:
        lines, found = [*lines, last], []
    lines = [line.strip() for line in lines]
    start = next((index for index, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE)
    return Infotext(
        prompt="\n".join(lines[:start]).strip("\n"),
        negative_prompt=negative.strip(" \n"),
        pairs={name: unquote(value) for name, value in found},
    )


def to_pairs(spec: Denoised, *, version: str, lora_hashes: Mapping[str, str] | None = None) -> dict[str, str]:
    sampler, schedule = sampler_names.split(spec.sampler)
    pairs = {
        "Steps": str(spec.steps),
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": number(spec.guidance),
        "Seed": str(spec.seed),
        "Size": f"{spec.width}x{spec.height}",
        "Model hash": spec.model_digest[:10],
        "Model": spec.model,
    }
    if isinstance(spec, ImageToImage | Inpaint | Edit):
        pairs["Denoising strength"] = number(spec.strength)
    elif isinstance(spec, TextToImage) and spec.highres is not None:
        pairs["Denoising strength"] = number(spec.highres.strength)
    if isinstance(spec, Edit):
        pairs["Image CFG scale"] = number(spec.image_guidance)
    if spec.clip_skip > 1:
        pairs["Clip skip"] = str(spec.clip_skip)
    pairs["RNG"] = "CPU"
    if isinstance(spec, TextToImage) and spec.highres is not None:
        pairs["Hires upscale"] = number(spec.highres.scale)
        if spec.highres.steps is not None:
            pairs["Hires steps"] = str(spec.highres.steps)
        pairs["Hires upscaler"] = UPSCALERS[spec.highres.upscaler]
    if isinstance(spec, Inpaint):
        pairs["Mask blur"] = number(spec.mask_blur)
        if spec.soft_mask:
            pairs["Mask edge"] = SOFT
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
    # AUTOMATIC1111 has no such settings, and reads past what it does not know.
    if spec.text_encoder:
        pairs["Text encoder"] = spec.text_encoder.name
    if spec.guidance_rescale:
        pairs["CFG rescale"] = number(spec.guidance_rescale)
    if isinstance(spec, Refined) and spec.refiner:
        pairs["Refiner"] = f"{spec.refiner.model} [{spec.refiner.digest[:10]}]"
        pairs["Refiner switch at"] = number(spec.refiner.switch)
    if spec.pag_scale:
        pairs["PAG scale"] = number(spec.pag_scale)
        if spec.pag_layers != ("mid",):
            pairs["PAG layers"] = ", ".join(spec.pag_layers)
    if spec.sag_scale:
        pairs["SAG scale"] = number(spec.sag_scale)
    if spec.freeu:
        pairs["FreeU"] = ", ".join(map(number, spec.freeu.model_dump().values()))
    if (spec.guidance_interval.start, spec.guidance_interval.end) != (0, 1):
        pairs["Guidance start"] = number(spec.guidance_interval.start)
        pairs["Guidance end"] = number(spec.guidance_interval.end)
    return pairs | {"Version": f"safelight {version}"}


def control_pairs(use: PinnedControl) -> str:
    """As ControlNet's extension says it; its pictures are in our own record alone."""
    said = {
        "Module": use.preprocessor,
        "Model": f"{use.model} [{use.digest[:8]}]",
        "Weight": number(use.weight),
        "Resize Mode": RESIZE_MODES[use.fit],
        "Guidance Start": number(use.start),
        "Guidance End": number(use.end),
        "Control Mode": CONTROL_MODES[use.mode],
    }
    return ", ".join(f"{label}: {value}" for label, value in said.items())


def from_pairs(pairs: Mapping[str, str]) -> dict[str, Any]:
    """In the words of `spec.Draft`; what makes no sense is left out."""

    def take(*fields: tuple[str, str, Callable[[str], Any]]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for label, name, kind in fields:
            with suppress(KeyError, ValueError, OverflowError):
                taken[name] = kind(pairs[label])
        return taken

    settings = take(
        ("Steps", "steps", int),
        ("CFG scale", "guidance", finite),
        ("CFG rescale", "guidance_rescale", finite),
        ("Refiner", "refiner", without_hash),
        ("Refiner switch at", "refiner_switch", finite),
        ("PAG scale", "pag_scale", finite),
        ("PAG layers", "pag_layers", listed),
        ("SAG scale", "sag_scale", finite),
        ("FreeU", "freeu", factors),
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
    if pairs.get("Mask edge") == SOFT:
        settings["soft_mask"] = True
    if pairs.get("Inpaint area") == "Only masked":
        settings["only_masked"] = True
    if interval := take(("Guidance start", "start", finite), ("Guidance end", "end", finite)):
        settings["guidance_interval"] = interval
    if "Hires upscale" in pairs:
        highres = take(
            ("Hires upscale", "scale", finite),
            ("Hires steps", "steps", int),
            ("Hires upscaler", "upscaler", OUR_UPSCALERS.__getitem__),
        )
        if "strength" in settings:
            highres["strength"] = settings.pop("strength")
        # There, 0 means "as many as the first pass".
        settings["highres"] = {name: value for name, value in highres.items() if value}
    return settings


def without_hash(title: str) -> str:
    return re.sub(r" \[[0-9a-f]{10}\]$", "", title)


def listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def factors(text: str) -> dict[str, float]:
    return dict(zip(("b1", "b2", "s1", "s2"), map(finite, text.split(",")), strict=True))


def quote(text: str) -> str:
    """AUTOMATIC1111's rule, and also what would not come back as it went: outer spaces and quotes."""
    plain = not any(mark in text for mark in ",:\n") and text == text.strip() and not text.startswith('"')
    return text if plain else json.dumps(text, ensure_ascii=False)


def unquote(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def number(value: float) -> str:
    """7.0 as 7, and all else in full."""
    return str(int(value)) if value == int(value) else repr(value)


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def storable(text: str) -> str:
    """Without what no text chunk can hold: NUL, and halves of surrogate pairs."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)
