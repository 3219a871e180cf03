"""Which kind of Stable Diffusion a checkpoint is, read from its configuration files alone.

| family | text encoders | prediction | made for |
|---|---|---|---|
| sd1  | CLIP ViT-L              | epsilon        | 512 |
| sd2  | OpenCLIP ViT-H          | epsilon or v   | 512, 768 |
| sdxl | CLIP ViT-L + OpenCLIP G | epsilon        | 1024 |

A family decides how prompts are encoded and what else the network is told; sizes, channels and the schedule's
constants are read from the checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.spec import Defaults, explain

FamilyName = Literal["sd1", "sd2", "sdxl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    name: FamilyName
    text_encoders: tuple[str, ...]
    """Folder names, in the order their states are joined."""
    penultimate: bool = False
    """Prompts are read from the layer before the last, without the final norm."""
    default_side: int


FAMILIES: dict[FamilyName, Family] = {
    "sd1": Family(name="sd1", text_encoders=("text_encoder",), default_side=512),
    "sd2": Family(name="sd2", text_encoders=("text_encoder",), default_side=768),
    "sdxl": Family(name="sdxl", text_encoders=("text_encoder", "text_encoder_2"), penultimate=True, default_side=1024),
}

PIPELINES: dict[str, tuple[FamilyName, ...]] = {
    "StableDiffusionPipeline": ("sd1", "sd2"),
    "StableDiffusionImg2ImgPipeline": ("sd1", "sd2"),
    "StableDiffusionInpaintPipeline": ("sd1", "sd2"),
    "LatentConsistencyModelPipeline": ("sd1", "sd2"),
    "StableDiffusionXLPipeline": ("sdxl",),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl",),
    "StableDiffusionXLInpaintPipeline": ("sdxl",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a diffusers folder says of itself; no weights are read."""

    folder: Path
    family: Family
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool
    defaults: Defaults

    @property
    def vae_scale(self) -> int:
        """Image pixels per latent pixel, along one side."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        return int(self.vae["latent_channels"])

    @property
    def inpaints_natively(self) -> bool:
        """The network also takes a mask and the masked picture (9 channels for Stable Diffusion)."""
        return int(self.unet["in_channels"]) == 2 * self.latent_channels + 1

    @property
    def takes_guidance(self) -> bool:
        """Distilled networks (LCM) are told the guidance scale; they need no second row."""
        return self.unet.get("time_cond_proj_dim") is not None

    @property
    def prediction(self) -> str:
        return str(self.scheduler.get("prediction_type", "epsilon"))


def describe(folder: Path) -> Description:
    """Read a diffusers folder's configuration.

    Raises:
        CorruptModel: files are missing or are not what their names say.
        UnsupportedOption: a pipeline or network we cannot run, by name.
    """
    index = read_config(folder / "model_index.json")
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise UnsupportedOption("model", f"{folder} is a {pipeline}; known are {', '.join(PIPELINES)}")
    unet = read_config(folder / "unet" / "config.json")
    vae = read_config(folder / "vae" / "config.json")
    family = FAMILIES[recognise(pipeline, unet)]
    scheduler = as_pipelines_read_it(read_config(folder / "scheduler" / "scheduler_config.json"), family)
    try:
        channels, latent_channels = int(unet["in_channels"]), int(vae["latent_channels"])
        if channels not in (latent_channels, 2 * latent_channels + 1):
            raise UnsupportedOption("model", f"{folder} has a network of {channels} input channels; known are 4 and 9")
        return Description(
            folder=folder,
            family=family,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", family.name == "sdxl")),
            defaults=read_defaults(folder, family, unet=unet, vae=vae, scheduler=scheduler),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptModel(f"{folder}: configuration lacks or garbles {error}") from None


def as_pipelines_read_it(scheduler: dict[str, Any], family: Family) -> dict[str, Any]:
    """diffusers' SD 1 and 2 pipelines correct two settings that early checkpoints were published with."""
    corrections = {"steps_offset": 1, "clip_sample": False}
    if family.name == "sdxl":
        return scheduler
    return scheduler | {name: value for name, value in corrections.items() if name in scheduler}


def text_widths(description: Description) -> tuple[int, ...]:
    """How wide the token embeddings of each text encoder are."""
    configs = [read_config(description.folder / part / "config.json") for part in description.family.text_encoders]
    return tuple(int(config.get("hidden_size", 512)) for config in configs)


def tokenizer_of(text_encoder: str) -> str:
    """The folder beside a text encoder's."""
    return text_encoder.replace("text_encoder", "tokenizer")


def recognise(pipeline: str, unet: Mapping[str, Any]) -> FamilyName:
    """SD 2 differs from SD 1 by its text encoder, which shows in the width of the cross-attention."""
    candidates = PIPELINES[pipeline]
    if len(candidates) == 1:
        return candidates[0]
    return "sd2" if unet.get("cross_attention_dim") == 1024 else "sd1"


def read_defaults(
    folder: Path, family: Family, *, unet: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> Defaults:
    """What `safelight.json` in the folder says, else what suits checkpoints of this kind."""
    sample_size = unet.get("sample_size")
    side = (
        sample_size * 2 ** (len(vae["block_out_channels"]) - 1) if isinstance(sample_size, int) else family.default_side
    )
    values: dict[str, Any] = {"width": side, "height": side}
    if unet.get("time_cond_proj_dim") is not None or scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler"):
        values |= {"sampler": "Default", "steps": 4, "guidance": 8.0 if unet.get("time_cond_proj_dim") else 1.0}
    elif is_turbo(scheduler):
        values |= {"sampler": "Default", "steps": 2, "guidance": 0.0, "width": 512, "height": 512, "strength": 0.5}
    elif str(scheduler.get("_class_name")).startswith(("EDM", "FlowMatch")):
        values |= {"sampler": "Default"}  # only few others walk their noise levels
    elif scheduler.get("rescale_betas_zero_snr"):
        values |= {"sampler": "DDIM", "guidance_rescale": 0.7}
    path = folder / "safelight.json"
    if path.is_file():
        values |= read_config(path).get("defaults", {})
    try:
        return Defaults(**values)
    except ValidationError as error:
        raise CorruptModel(f"{path}: defaults: {explain(error, list(Defaults.model_fields))}") from None


def is_turbo(scheduler: Mapping[str, Any]) -> bool:
    """SD-turbo and SDXL-turbo are told apart by nothing but their scheduler."""
    return (
        scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("_class_name") in ("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler")
        and not scheduler.get("rescale_betas_zero_snr")
    )


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptModel(f"{path} is missing: a diffusers folder has one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModel(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise CorruptModel(f"{path} must hold a JSON object")
    return config
