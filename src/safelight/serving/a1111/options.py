"""Options that an AUTOMATIC1111 client may set: for its key through /sdapi/v1/options, or for one request.

There, options are global to the program; here they belong to the key. Options that would change the picture in an
unsupported way are refused by name; those about grids, folders and the page are ignored.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from safelight.assets.encode import Encoding, Format
from safelight.errors import InvalidFields, SafelightError, UnsupportedOption
from safelight.spec.fields import ClipSkip
from safelight.studio import Studio
from safelight.validation import CheckedModel, to_invalid_fields

DEFAULT_MODEL = "mini"
MODEL_VAE = ("Automatic", "None", "")
FORMATS: dict[str, Format] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp", "avif": "avif"}
NEUTRAL: dict[str, object] = {
    "always_discard_next_to_last_sigma": False,
    "emphasis": "Original",
    "eta_ancestral": 1.0,
    "eta_ddim": 0.0,
    "eta_noise_seed_delta": 0,
    "face_restoration": False,
    "hires_fix_refiner_pass": "second pass",
    "img2img_color_correction": False,
    "img2img_extra_noise": 0.0,
    "img2img_fix_steps": False,
    "initial_noise_multiplier": 1.0,
    "inpainting_mask_weight": 1.0,
    "randn_source": "CPU",
    "s_churn": 0.0,
    "s_min_uncond": 0.0,
    "s_noise": 1.0,
    "sd_hypernetwork": "None",
    "sd_noise_schedule": "Default",
    "skip_early_cond": 0.0,
    "token_merging_ratio": 0.0,
    "token_merging_ratio_hr": 0.0,
    "token_merging_ratio_img2img": 0.0,
}
"""Unsupported options that would change the picture, with the only value that is accepted."""


class Options(CheckedModel):
    """The supported options; `given` are those to store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sd_model_checkpoint: str = DEFAULT_MODEL
    sd_vae: str = "Automatic"
    """The name of a file in `vaes/`; "Automatic", "None" and "" are the model's own."""
    CLIP_stop_at_last_layers: ClipSkip | None = None
    """None: the model's default."""
    samples_format: Literal["png", "jpg", "jpeg", "webp", "avif"] = "png"
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 80
    enable_pnginfo: bool = True
    """False omits the prompt from the file."""

    @property
    def encoding(self) -> Encoding:
        metadata = "full" if self.enable_pnginfo else "minimal"
        return Encoding(format=FORMATS[self.samples_format], quality=self.jpeg_quality, metadata=metadata)

    @property
    def vae(self) -> str | None:
        """The `vae` of a `spec.Draft`."""
        return None if self.sd_vae in MODEL_VAE else self.sd_vae

    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


def merge_options(stored: Mapping[str, Any], changes: Mapping[str, Any], studio: Studio) -> Options:
    """The stored options, updated by `changes`; null changes nothing. Blocking: models are looked up on disk.

    Raises:
        SafelightError: all invalid changes at once.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    errors: list[SafelightError] = [
        UnsupportedOption(name, f"{changes[name]!r} is not supported here, only {neutral!r}")
        for name, neutral in NEUTRAL.items()
        if changes.get(name, neutral) != neutral
    ]
    for name, find in {"sd_model_checkpoint": find_model, "sd_vae": find_vae}.items():
        if isinstance(given := changes.get(name), str):
            try:
                changes[name] = find(given, studio)
            except SafelightError as error:
                error.param = name
                errors.append(error)
    try:
        options = Options.model_validate({**stored, **changes})
    except ValidationError as error:
        raise InvalidFields(
            [*errors, *to_invalid_fields(error.errors(include_url=False)).errors]
        ).simplified() from None
    if errors:
        raise InvalidFields(errors).simplified()
    return options


def options_view(options: Options, studio: Studio) -> dict[str, Any]:
    """The answer of GET /options; a client may change a value and send all of it back."""
    values = options.model_dump() | {"CLIP_stop_at_last_layers": options.CLIP_stop_at_last_layers or 1}
    return NEUTRAL | values | {"sd_model_checkpoint": title(options.sd_model_checkpoint, studio)}


def title(model: str, studio: Studio) -> str:
    """`mini [0123456789]`: the name and the beginning of the digest, as clients list them and send them back."""
    try:
        digest = studio.models.known_digest(model)
        return f"{model} [{digest[:10]}]" if digest else model
    except SafelightError:
        # The model was chosen before it was removed.
        return model


def find_model(name: str, studio: Studio) -> str:
    """The model's name, from its title, its name or its hash."""
    name = re.sub(r" \[[0-9a-f]{1,64}\]$", "", name.strip()) or DEFAULT_MODEL
    known = studio.models.catalogue.names()
    if name not in known and re.fullmatch("[0-9a-f]{10,64}", name):
        name = next((model for model in known if title(model, studio).endswith(f" [{name[:10]}]")), name)
    studio.models.find(name)
    return name


def find_vae(name: str, studio: Studio) -> str:
    """
    Raises:
        UnknownPart: no VAE has this name.
    """
    if name not in MODEL_VAE:
        studio.parts.folder.find("vae", name)
    return name
