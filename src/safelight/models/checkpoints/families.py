"""A checkpoint's description, read from its configuration files alone (or a single file's header)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safelight.errors import CorruptModel, InvalidField, UnsupportedOption
from safelight.models.checkpoints.defaults import read_defaults
from safelight.models.checkpoints.family import FAMILIES, PIPELINES, Family, FamilyName
from safelight.models.weights.single_file import read_configurations
from safelight.regular_file import read_regular
from safelight.spec.complete import Defaults
from safelight.spec.fields import Reads

SIDE_STEP = 8
"""Image sides are multiples of at least this many pixels."""
FLUX_PATCH = 2
"""Flux packs latents in patches of 2x2; the other transformers have `patch_size` in their configuration."""

NOISE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}

IMAGE_ENCODER, PREPROCESSOR = "image_encoder", "feature_extractor/preprocessor_config.json"
"""Of variations: the folder of the image encoder, and its preprocessing settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a checkpoint is, from its configuration; no weights are read."""

    path: Path
    """A diffusers folder, or a single file."""
    family: Family
    unet: Mapping[str, Any]
    """Configuration of the denoising network, which in some families is a transformer."""
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool
    defaults: Defaults
    text_encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Their configurations by part, for a single file only; a folder's are read when loading."""
    t5: str = ""
    """The folder of its T5; some checkpoints of Stable Diffusion 3 have none, and get zeros in its place."""

    @property
    def is_file(self) -> bool:
        return bool(self.text_encoders)

    def configuration(self, part: str) -> Mapping[str, Any]:
        """
        Raises:
            CorruptModel: the configuration is missing from the folder, or invalid.
        """
        match part:
            case "unet" | "transformer":
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
    def prompt_encoders(self) -> tuple[str, ...]:
        """The folders of all text encoders; T5 is the last."""
        return (*self.family.text_encoders, *([self.t5] if self.t5 else []))

    @property
    def patch(self) -> int:
        """Latent pixels per patch of the network, along one side."""
        return FLUX_PATCH if self.family.name == "flux" else int(self.unet.get("patch_size") or 1)

    @property
    def side_step(self) -> int:
        """A side must be a multiple of this many image pixels."""
        return max(SIDE_STEP, self.vae_scale * self.patch)

    @property
    def max_side(self) -> int:
        """The longest side in image pixels that the network has position embeddings for; 0 if there is no limit."""
        return int(self.unet.get("pos_embed_max_size") or 0) * self.patch * self.vae_scale

    @property
    def in_channels(self) -> int:
        """Input channels of the network per latent pixel, before Flux's packing."""
        return int(self.unet["in_channels"]) // (FLUX_PATCH**2 if self.family.name == "flux" else 1)

    @property
    def inpaints_natively(self) -> bool:
        """Whether the network also takes a mask and the masked image (9 channels for Stable Diffusion)."""
        return self.in_channels == 2 * self.latent_channels + 1

    @property
    def reads(self) -> Reads:
        """What conditions it. A network with an image beside the latent (8 channels in SD) follows instructions."""
        if self.family.image_conditioned:
            return "picture"
        return "instructions" if self.in_channels == 2 * self.latent_channels else "words"

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network, as in distilled ones (LCM, Flux)."""
        return self.unet.get("time_cond_proj_dim") is not None or bool(self.unet.get("guidance_embeds"))

    @property
    def supports_cfg(self) -> bool:
        """Whether classifier-free guidance, with a second row for the negative prompt, applies; not if distilled."""
        return not self.takes_guidance and self.family.name != "flux"

    @property
    def prediction(self) -> str:
        return str(self.scheduler.get("prediction_type", "epsilon"))


def describe(path: Path) -> Description:
    """Read a diffusers folder's configuration, or derive a single file's from its header.

    Raises:
        CorruptModel: files are missing or invalid.
        UnsupportedOption: a pipeline or network that is not supported.
    """
    parts = read_configurations(path) if path.is_file() else read_folder(path)
    own = read_own_settings(path)
    index, vae = parts["model_index"], parts["vae"]
    unet = parts[network_of(index, path)]
    family = FAMILIES[index.get("family") or identify(index, unet)]
    scheduler = as_pipelines_read_it(parts["scheduler"], family)
    try:
        if path.is_file():
            scheduler |= own.get("scheduler", {})
        description = Description(
            path=path,
            family=family,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", family.name == "sdxl")),
            defaults=read_defaults(own_settings(path), own, family, unet=unet, vae=vae, scheduler=scheduler),
            text_encoders={name: parts[name] for name in (*family.text_encoders, family.t5) if name in parts},
            t5=family.t5 if family.t5 and (index.get(family.t5) or [None])[0] else "",
        )
        require_known_channels(description)
        return description
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptModel(f"{path}: missing or invalid in the configuration: {error}") from None


def require_known_channels(description: Description) -> None:
    channels, latent_channels = description.in_channels, description.latent_channels
    known = [latent_channels, 2 * latent_channels, 2 * latent_channels + 1]
    # No transformer follows instructions, and Flux has no mask input.
    allowed = (
        known if description.family.network == "unet" else known[::2] if description.family.name == "sd3" else known[:1]
    )
    if channels not in allowed:
        raise UnsupportedOption(
            "model",
            f"{description.path} has a network with {channels} input channels; supported: "
            + " and ".join(", ".join(map(str, allowed)).rsplit(", ", 1)),
        )
    if description.family.t5_alone and not description.t5:
        raise CorruptModel(
            f"{description.path} has no {description.family.t5}, the only text encoder that its network uses"
        )


def network_of(index: Mapping[str, Any], path: Path) -> str:
    """Return the name of the denoising network's part.

    Raises:
        UnsupportedOption: the pipeline is not supported.
    """
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise UnsupportedOption("model", f"{path} is a {pipeline}; supported: {', '.join(PIPELINES)}")
    return FAMILIES[PIPELINES[pipeline][0]].network


def read_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the configurations by part; those of text encoders are read when these are loaded."""
    index = read_config(folder / "model_index.json")
    network = network_of(index, folder)
    names = {
        network: f"{network}/config.json",
        "vae": "vae/config.json",
        "scheduler": "scheduler/scheduler_config.json",
    }
    return {"model_index": index} | {part: read_config(folder / name) for part, name in names.items()}


def require_sides(description: Description, width: int, height: int) -> None:
    """
    Raises:
        InvalidField: the network cannot draw an image of this size.
    """
    step = description.side_step
    for name, side in (("width", width), ("height", height)):
        if side % step:
            raise InvalidField(name, f"this model needs a multiple of {step} pixels, such as {side // step * step}")
        if description.max_side and side > description.max_side:
            raise InvalidField(name, f"this model draws sides of at most {description.max_side} pixels, not {side}")


def require_successor(first: Description, second: Description, *, names: tuple[str, str], masked: bool) -> None:
    """
    Raises:
        UnsupportedOption: the second model cannot continue the first one's latents, or one of them is no plain UNet;
            with a mask, a UNet made for inpainting counts as one.
    """
    for description, name in zip((first, second), names, strict=True):
        if description.family.network != "unet" or description.reads != "words":
            raise UnsupportedOption("refiner", f"{name} is not a plain UNet, so it cannot be combined with a refiner")
        if description.inpaints_natively and not masked:
            raise UnsupportedOption("refiner", f"{name} is made for inpainting: give it an init picture and a mask")
    if noise_of(first) != noise_of(second):
        raise UnsupportedOption("refiner", f"{names[1]} was trained with another noise schedule than {names[0]}")
    latents = [
        (description.latent_channels, description.vae_scale, description.vae.get("scaling_factor", 0.18215))
        for description in (first, second)
    ]
    if latents[0] != latents[1]:
        raise UnsupportedOption(
            "refiner",
            f"{names[1]} uses another latent space than {names[0]}: {latents[1][0]} channels scaled by "
            f"{latents[1][2]:g}, not {latents[0][0]} by {latents[0][2]:g}",
        )


def noise_of(description: Description) -> tuple[Any, ...]:
    """Return the settings of the noise schedule, with diffusers' defaults for those that are not set."""
    return tuple(description.scheduler.get(name, default) for name, default in NOISE.items())


def own_settings(path: Path) -> Path:
    """Return the path of safelight's settings for a checkpoint: inside a folder, or beside a single file."""
    return path.with_suffix(".safelight.json") if path.is_file() else path / "safelight.json"


def read_own_settings(path: Path) -> dict[str, Any]:
    return read_config(own) if (own := own_settings(path)).is_file() else {}


def as_pipelines_read_it(scheduler: dict[str, Any], family: Family) -> dict[str, Any]:
    """Correct two settings of early SD 1 and 2 checkpoints, as diffusers' pipelines do."""
    corrections = {"steps_offset": 1, "clip_sample": False}
    if family.name not in ("sd1", "sd2"):
        return scheduler
    return scheduler | {name: value for name, value in corrections.items() if name in scheduler}


def text_widths(description: Description) -> tuple[int, ...]:
    """Return the token embedding width of each CLIP text encoder."""
    configs = [description.configuration(part) for part in description.family.text_encoders]
    return tuple(int(config.get("hidden_size", 512)) for config in configs)


def tokenizer_of(text_encoder: str) -> str:
    """Return the name of the tokenizer folder of a text encoder."""
    return text_encoder.replace("text_encoder", "tokenizer")


def identify(index: Mapping[str, Any], unet: Mapping[str, Any]) -> FamilyName:
    """Return the family. SD 2 differs from SD 1 in the cross-attention width; SDXL's refiner sets
    `requires_aesthetics_score`."""
    candidates = PIPELINES[str(index["_class_name"])]
    if len(candidates) == 1:
        return candidates[0]
    if "sdxl" in candidates:
        return "sdxl-refiner" if index.get("requires_aesthetics_score") else "sdxl"
    return "sd2" if unet.get("cross_attention_dim") == 1024 else "sd1"


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(path))
    except FileNotFoundError:
        raise CorruptModel(f"{path} is missing; a diffusers folder needs it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModel(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(config, dict):
        raise CorruptModel(f"{path} must hold a JSON object")
    return config
