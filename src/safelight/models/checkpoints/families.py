"""What a checkpoint says of itself, read from its configuration files alone (or a single file's header)."""

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
"""Sides are multiples of it, at least."""
FLUX_PATCH = 2
"""Flux's network reads latents two by two; the other transformers say in their configuration what they do."""

NOISE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}

IMAGE_ENCODER, PREPROCESSOR = "image_encoder", "feature_extractor/preprocessor_config.json"
"""Of variations: the folder of what reads the picture, and how the picture is made ready for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a checkpoint says of itself; no weights are read."""

    path: Path
    """A diffusers folder, or a single file."""
    family: Family
    unet: Mapping[str, Any]
    """Of what denoises, which in some families is a transformer."""
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool
    defaults: Defaults
    text_encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Their configurations by part, where they are known before loading: those of a single file."""
    t5: str = ""
    """The folder of its T5; some checkpoints of Stable Diffusion 3 come without, and are told zeros instead."""

    @property
    def is_file(self) -> bool:
        return bool(self.text_encoders)

    def configuration(self, part: str) -> Mapping[str, Any]:
        """
        Raises:
            CorruptModel: it is missing from the folder, or garbled.
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
    def readers(self) -> tuple[str, ...]:
        """The folders of all that reads the prompt."""
        return (*self.family.text_encoders, *([self.t5] if self.t5 else []))

    @property
    def patch(self) -> int:
        """Latent pixels that the network takes together, along one side."""
        return FLUX_PATCH if self.family.name == "flux" else int(self.unet.get("patch_size") or 1)

    @property
    def side_step(self) -> int:
        """Image pixels that a side must be a multiple of."""
        return max(SIDE_STEP, self.vae_scale * self.patch)

    @property
    def most_side(self) -> int:
        """Image pixels of the longest side that the network has positions for; 0 where there is no such bound."""
        return int(self.unet.get("pos_embed_max_size") or 0) * self.patch * self.vae_scale

    @property
    def in_channels(self) -> int:
        """Of a latent, as the network is given it."""
        return int(self.unet["in_channels"]) // (FLUX_PATCH**2 if self.family.name == "flux" else 1)

    @property
    def inpaints_natively(self) -> bool:
        """The network also takes a mask and the masked picture (9 channels for Stable Diffusion)."""
        return self.in_channels == 2 * self.latent_channels + 1

    @property
    def reads(self) -> Reads:
        """A network that sees a picture beside the latent (8 channels for Stable Diffusion) follows instructions."""
        if self.family.reads_picture:
            return "picture"
        return "instructions" if self.in_channels == 2 * self.latent_channels else "words"

    @property
    def takes_guidance(self) -> bool:
        """Distilled networks (LCM, Flux) are told the guidance scale."""
        return self.unet.get("time_cond_proj_dim") is not None or bool(self.unet.get("guidance_embeds"))

    @property
    def supports_cfg(self) -> bool:
        """Guidance is by a second row, of the negative prompt. Distilled networks know no such thing."""
        return not self.takes_guidance and self.family.name != "flux"

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
    index, vae = parts["model_index"], parts["vae"]
    unet = parts[network_of(index, path)]
    family = FAMILIES[index.get("family") or identify(index, unet)]
    scheduler = as_pipelines_read_it(parts["scheduler"], family)
    try:
        if path.is_file():
            scheduler |= own.get("scheduler", {})
        about = Description(
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
        require_known_channels(about)
        return about
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptModel(f"{path}: configuration lacks or garbles {error}") from None


def require_known_channels(about: Description) -> None:
    channels, latent_channels = about.in_channels, about.latent_channels
    known = [latent_channels, 2 * latent_channels, 2 * latent_channels + 1]
    # Of the transformers, none follows instructions, and Flux has no mask.
    allowed = known if about.family.network == "unet" else known[::2] if about.family.name == "sd3" else known[:1]
    if channels not in allowed:
        raise UnsupportedOption(
            "model",
            f"{about.path} has a network of {channels} input channels; known are "
            + " and ".join(", ".join(map(str, allowed)).rsplit(", ", 1)),
        )
    if about.family.t5_alone and not about.t5:
        raise CorruptModel(f"{about.path} has no {about.family.t5}: its network reads nothing else")


def network_of(index: Mapping[str, Any], path: Path) -> str:
    """The part that denoises.

    Raises:
        UnsupportedOption: a pipeline that we cannot run.
    """
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise UnsupportedOption("model", f"{path} is a {pipeline}; known are {', '.join(PIPELINES)}")
    return FAMILIES[PIPELINES[pipeline][0]].network


def read_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The text encoders' are read when they are loaded."""
    index = read_config(folder / "model_index.json")
    network = network_of(index, folder)
    names = {
        network: f"{network}/config.json",
        "vae": "vae/config.json",
        "scheduler": "scheduler/scheduler_config.json",
    }
    return {"model_index": index} | {part: read_config(folder / name) for part, name in names.items()}


def require_sides(about: Description, width: int, height: int) -> None:
    """
    Raises:
        InvalidField: the network cannot draw a picture of this size.
    """
    step = about.side_step
    for name, side in (("width", width), ("height", height)):
        if side % step:
            raise InvalidField(name, f"this model draws multiples of {step} pixels; {side // step * step} is one")
        if about.most_side and side > about.most_side:
            raise InvalidField(name, f"this model draws sides of at most {about.most_side} pixels, not {side}")


def require_successor(first: Description, second: Description, *, names: tuple[str, str], masked: bool) -> None:
    """
    Raises:
        UnsupportedOption: the second model reads other latents than the first one makes, or one of them is no plain
            UNet; with a mask, a UNet made for inpainting is one too.
    """
    for about, name in zip((first, second), names, strict=True):
        if about.family.network != "unet" or about.reads != "words":
            raise UnsupportedOption("refiner", f"{name} neither hands over nor takes over: it is no plain UNet")
        if about.inpaints_natively and not masked:
            raise UnsupportedOption("refiner", f"{name} is made for inpainting: give it an init picture and a mask")
    if noise_of(first) != noise_of(second):
        raise UnsupportedOption("refiner", f"{names[1]} was trained on other noise levels than {names[0]}")
    told = [
        (about.latent_channels, about.vae_scale, about.vae.get("scaling_factor", 0.18215)) for about in (first, second)
    ]
    if told[0] != told[1]:
        raise UnsupportedOption(
            "refiner",
            f"{names[1]} reads other latents than {names[0]} makes: {told[1][0]} channels scaled by {told[1][2]:g}, "
            f"not {told[0][0]} by {told[0][2]:g}",
        )


def noise_of(about: Description) -> tuple[Any, ...]:
    """Which timestep is how noisy; where a configuration is silent, as diffusers' schedulers have it."""
    return tuple(about.scheduler.get(name, silent) for name, silent in NOISE.items())


def own_settings(path: Path) -> Path:
    """Where safelight's own word on a checkpoint is: inside a folder, or beside a single file."""
    return path.with_suffix(".safelight.json") if path.is_file() else path / "safelight.json"


def read_own_settings(path: Path) -> dict[str, Any]:
    return read_config(own) if (own := own_settings(path)).is_file() else {}


def as_pipelines_read_it(scheduler: dict[str, Any], family: Family) -> dict[str, Any]:
    """diffusers' SD 1 and 2 pipelines correct two settings that early checkpoints were published with."""
    corrections = {"steps_offset": 1, "clip_sample": False}
    if family.name not in ("sd1", "sd2"):
        return scheduler
    return scheduler | {name: value for name, value in corrections.items() if name in scheduler}


def text_widths(description: Description) -> tuple[int, ...]:
    """How wide the token embeddings of each text encoder are."""
    configs = [description.configuration(part) for part in description.family.text_encoders]
    return tuple(int(config.get("hidden_size", 512)) for config in configs)


def tokenizer_of(text_encoder: str) -> str:
    """The folder beside a text encoder's."""
    return text_encoder.replace("text_encoder", "tokenizer")


def identify(index: Mapping[str, Any], unet: Mapping[str, Any]) -> FamilyName:
    """SD 2 differs from SD 1 by its text encoder, which shows in the width of the cross-attention; SDXL's refiner says
    that it is told a score."""
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
        raise CorruptModel(f"{path} is missing: a diffusers folder has one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModel(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(config, dict):
        raise CorruptModel(f"{path} must hold a JSON object")
    return config
