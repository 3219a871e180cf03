"""Which kind of Stable Diffusion a checkpoint is, read from its configuration files alone.

| family | text encoders | prediction | made for |
|---|---|---|---|
| sd1  | CLIP ViT-L              | epsilon        | 512 |
| sd2  | OpenCLIP ViT-H          | epsilon or v   | 512, 768 |
| sdxl | CLIP ViT-L + OpenCLIP G | epsilon        | 1024 |

Variations (`variation`) are Stable Diffusion 1 told by CLIP's image encoder in place of a text encoder.

A family decides how prompts are encoded and what else the network is told; sizes, channels and the schedule's
constants are read from the checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.models.single_file import read_configurations
from safelight.spec import Defaults, Reads, explain

FamilyName = Literal["sd1", "sd2", "sdxl", "variation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    name: FamilyName
    text_encoders: tuple[str, ...]
    """Folder names, in the order their states are joined."""
    penultimate: bool = False
    """Prompts are read from the layer before the last, without the final norm."""
    default_side: int
    reads_picture: bool = False
    """Told what CLIP sees in a picture, and no words."""


IMAGE_ENCODER, PREPROCESSOR = "image_encoder", "feature_extractor/preprocessor_config.json"
"""Of variations: the folder of what reads the picture, and how the picture is made ready for it."""

FAMILIES: dict[FamilyName, Family] = {
    "sd1": Family(name="sd1", text_encoders=("text_encoder",), default_side=512),
    "sd2": Family(name="sd2", text_encoders=("text_encoder",), default_side=768),
    "sdxl": Family(name="sdxl", text_encoders=("text_encoder", "text_encoder_2"), penultimate=True, default_side=1024),
    "variation": Family(name="variation", text_encoders=(), default_side=512, reads_picture=True),
}

PIPELINES: dict[str, tuple[FamilyName, ...]] = {
    "StableDiffusionPipeline": ("sd1", "sd2"),
    "StableDiffusionImg2ImgPipeline": ("sd1", "sd2"),
    "StableDiffusionInpaintPipeline": ("sd1", "sd2"),
    "LatentConsistencyModelPipeline": ("sd1", "sd2"),
    "StableDiffusionInstructPix2PixPipeline": ("sd1", "sd2"),
    "StableDiffusionImageVariationPipeline": ("variation",),
    "StableDiffusionXLPipeline": ("sdxl",),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl",),
    "StableDiffusionXLInpaintPipeline": ("sdxl",),
    "StableDiffusionXLInstructPix2PixPipeline": ("sdxl",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a checkpoint says of itself; no weights are read."""

    path: Path
    """A diffusers folder, or a single file."""
    family: Family
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool
    defaults: Defaults
    text_encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Their configurations by part, where they are known before loading: those of a single file."""

    @property
    def is_file(self) -> bool:
        return bool(self.text_encoders)

    def configuration(self, part: str) -> Mapping[str, Any]:
        """
        Raises:
            CorruptModel: it is missing from the folder, or garbled.
        """
        match part:
            case "unet":
                return self.unet
            case "vae":
                return self.vae
            case _ if self.is_file:
                return self.text_encoders[part]
            case _:
                return read_config(self.path / part / "config.json")

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
    def reads(self) -> Reads:
        """A network that sees a picture beside the latent (8 channels for Stable Diffusion) follows instructions."""
        if self.family.reads_picture:
            return "picture"
        return "instructions" if int(self.unet["in_channels"]) == 2 * self.latent_channels else "words"

    @property
    def takes_guidance(self) -> bool:
        """Distilled networks (LCM) are told the guidance scale; they need no second row."""
        return self.unet.get("time_cond_proj_dim") is not None

    @property
    def prediction(self) -> str:
        return str(self.scheduler.get("prediction_type", "epsilon"))


def describe(path: Path) -> Description:
    """Read a diffusers folder's configuration, or derive a single file's from its header.

    Raises:
        CorruptModel: files are missing or are not what their names say.
        UnsupportedOption: a pipeline or network we cannot run, by name.
    """
    parts = read_configurations(path) if path.is_file() else read_folder(path)
    own = read_own_settings(path)
    index, unet, vae = parts["model_index"], parts["unet"], parts["vae"]
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise UnsupportedOption("model", f"{path} is a {pipeline}; known are {', '.join(PIPELINES)}")
    family = FAMILIES[index.get("family") or recognise(pipeline, unet)]
    scheduler = as_pipelines_read_it(parts["scheduler"], family)
    try:
        if path.is_file():
            scheduler |= own.get("scheduler", {})
        channels, latent_channels = int(unet["in_channels"]), int(vae["latent_channels"])
        if channels not in (latent_channels, 2 * latent_channels, 2 * latent_channels + 1):
            raise UnsupportedOption("model", f"{path} has a network of {channels} input channels; known are 4, 8 and 9")
        return Description(
            path=path,
            family=family,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", family.name == "sdxl")),
            defaults=read_defaults(path, own, family, unet=unet, vae=vae, scheduler=scheduler),
            text_encoders={name: config for name, config in parts.items() if name in family.text_encoders},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptModel(f"{path}: configuration lacks or garbles {error}") from None


def read_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The text encoders' are read when they are loaded."""
    names = {
        "model_index": "model_index.json",
        "unet": "unet/config.json",
        "vae": "vae/config.json",
        "scheduler": "scheduler/scheduler_config.json",
    }
    return {part: read_config(folder / name) for part, name in names.items()}


def own_settings(path: Path) -> Path:
    """Where safelight's own word on a checkpoint is: inside a folder, or beside a single file."""
    return path.with_suffix(".safelight.json") if path.is_file() else path / "safelight.json"


def read_own_settings(path: Path) -> dict[str, Any]:
    return read_config(own) if (own := own_settings(path)).is_file() else {}


def as_pipelines_read_it(scheduler: dict[str, Any], family: Family) -> dict[str, Any]:
    """diffusers' SD 1 and 2 pipelines correct two settings that early checkpoints were published with."""
    corrections = {"steps_offset": 1, "clip_sample": False}
    if family.name == "sdxl":
        return scheduler
    return scheduler | {name: value for name, value in corrections.items() if name in scheduler}


def text_widths(description: Description) -> tuple[int, ...]:
    """How wide the token embeddings of each text encoder are."""
    configs = [description.configuration(part) for part in description.family.text_encoders]
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
    path: Path,
    own: Mapping[str, Any],
    family: Family,
    *,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> Defaults:
    """What safelight's own file says, else what suits checkpoints of this kind."""
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
    values |= own.get("defaults", {})
    try:
        return Defaults(**values)
    except ValidationError as error:
        raise CorruptModel(f"{own_settings(path)}: defaults: {explain(error, list(Defaults.model_fields))}") from None


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
