"""Metadata of pictures for /sdapi/v1: the `info` of an answer, and the answer of png-info."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from safelight.assets import sampler_names
from safelight.assets.infotext import parse_infotext, quote, to_pairs, write_infotext
from safelight.assets.read_metadata import Metadata
from safelight.serving.a1111.generation_body import GenerationBody
from safelight.spec import Denoised, TextToImage, Upscale, Variation
from safelight.version import __version__

ELSEWHERE = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model", "Clip skip", "Version")
"""Pairs of an infotext that `info` has under names of its own."""
LABELS = {
    "steps": "Steps",
    "sampler": "Sampler",
    "guidance": "CFG scale",
    "seed": "Seed",
    "model": "Model",
    "strength": "Denoising strength",
    "clip_skip": "Clip skip",
}


def info_of(
    requested: Sequence[Denoised],
    drawn: Sequence[Denoised],
    body: GenerationBody,
    *,
    began: float,
    lora_hashes: Mapping[str, str],
) -> str:
    """JSON with the fields of AUTOMATIC1111's `Processed.js()`, of the drawn pictures, or else the requested."""
    specs = drawn or requested
    first = specs[0]
    sampler, _ = sampler_names.split(first.sampler)
    pairs = to_pairs(first, version=__version__, lora_hashes=lora_hashes)
    extra = {name: value for name, value in pairs.items() if name not in ELSEWHERE}
    return json.dumps(
        {
            "prompt": first.prompt,
            "all_prompts": [spec.prompt for spec in specs],
            "negative_prompt": first.negative_prompt,
            "all_negative_prompts": [spec.negative_prompt for spec in specs],
            "seed": first.seed,
            "all_seeds": [spec.seed for spec in specs],
            "subseed": body.subseed,
            "all_subseeds": [body.subseed for _ in specs],
            "subseed_strength": 0,
            "width": first.width,
            "height": first.height,
            "sampler_name": sampler,
            "cfg_scale": first.guidance,
            "steps": first.steps,
            "batch_size": body.batch_size,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": first.model,
            "sd_model_hash": first.model_digest[:10],
            "sd_vae_name": first.vae.name if first.vae else None,
            "sd_vae_hash": first.vae.digest[:10] if first.vae else None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": strength_of(first),
            "extra_generation_params": extra,
            "index_of_first_image": 0,
            "infotexts": [write_infotext(spec, version=__version__, lora_hashes=lora_hashes) for spec in drawn],
            "styles": [],
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(began)),
            "clip_skip": first.clip_skip,
            "is_using_inpainting_conditioning": False,
            "version": f"safelight {__version__}",
        }
    )


def strength_of(spec: Denoised) -> float | None:
    if isinstance(spec, TextToImage):
        return spec.highres.strength if spec.highres else None
    return None if isinstance(spec, Variation) else spec.strength


def infotext_of(metadata: Metadata) -> str:
    """The infotext in the file, or one made of another program's metadata."""
    if written := metadata.raw.get("parameters"):
        return written
    if metadata.spec is not None and not isinstance(metadata.spec, Upscale):
        return write_infotext(metadata.spec, version=__version__)
    settings: dict[str, Any] = dict(metadata.settings)
    pairs = {label: str(settings[name]) for name, label in LABELS.items() if settings.get(name) is not None}
    if "Sampler" in pairs:
        pairs["Sampler"], pairs["Schedule type"] = sampler_names.split(pairs["Sampler"])
    if "width" in settings and "height" in settings:
        pairs["Size"] = f"{settings['width']}x{settings['height']}"
    lines = [metadata.prompt, f"Negative prompt: {metadata.negative_prompt}" if metadata.negative_prompt else ""]
    lines.append(", ".join(f"{label}: {quote(value)}" for label, value in pairs.items()))
    return "\n".join(filter(None, lines))


def parameters_of(infotext: str) -> dict[str, Any]:
    """The infotext's settings as AUTOMATIC1111 returns them: including the prompts, and sizes in two parts."""
    read = parse_infotext(infotext)
    parameters: dict[str, Any] = {"Prompt": read.prompt, "Negative prompt": read.negative_prompt}
    for name, value in read.pairs.items():
        if size := re.fullmatch(r"(\d+)x(\d+)", value):
            parameters |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            parameters[name] = value
    return parameters


def items_of(raw: Mapping[str, str]) -> dict[str, str]:
    """All other texts in the file."""
    return {name: text for name, text in raw.items() if name != "parameters"}
