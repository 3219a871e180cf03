"""What an AUTOMATIC1111 client may set: for its key through /sdapi/v1/options, or for one request.

There, options are the program's and one user's change is everybody's; here they belong to the key. Options that would
change the picture in a way we cannot follow are refused by name; those about grids, folders and the page are not ours.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from safelight.assets.encode import Encoding, Format
from safelight.errors import InvalidFields, SafelightError, UnsupportedOption
from safelight.spec.fields import ClipSkip
from safelight.studio import Studio
from safelight.validation import CheckedModel, faults_in

DEFAULT_MODEL = "mini"
OWN_VAE = ("Automatic", "None", "")
FORMATS: dict[str, Format] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
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
"""Options that would change the picture, at the only value that we draw with."""


class Options(CheckedModel):
    """Those that are honoured; `given` is how they are stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sd_model_checkpoint: str = DEFAULT_MODEL
    sd_vae: str = "Automatic"
    """The name of one in `vaes/`; "Automatic", "None" and nothing are the model's own."""
    CLIP_stop_at_last_layers: ClipSkip | None = None
    """None: what suits the model."""
    samples_format: Literal["png", "jpg", "jpeg", "webp"] = "png"
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 80
    enable_pnginfo: bool = True
    """False leaves the prompt out of the file."""

    @property
    def encoding(self) -> Encoding:
        metadata = "full" if self.enable_pnginfo else "minimal"
        return Encoding(format=FORMATS[self.samples_format], quality=self.jpeg_quality, metadata=metadata)

    @property
    def vae(self) -> str | None:
        """In the words of `spec.Draft`."""
        return None if self.sd_vae in OWN_VAE else self.sd_vae

    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


def merged(stored: Mapping[str, Any], said: Mapping[str, Any], studio: Studio) -> Options:
    """The options with what a client says of them; null says nothing. Blocks: models are looked for on disk.

    Raises:
        SafelightError: it says what cannot be; all of it at once.
    """
    said = {name: value for name, value in said.items() if value is not None}
    wrong: list[SafelightError] = [
        UnsupportedOption(name, f"{said[name]!r} is not supported here, only {neutral!r}")
        for name, neutral in NEUTRAL.items()
        if said.get(name, neutral) != neutral
    ]
    for name, find in {"sd_model_checkpoint": find_model, "sd_vae": find_vae}.items():
        if isinstance(given := said.get(name), str):
            try:
                said[name] = find(given, studio)
            except SafelightError as error:
                error.param = name
                wrong.append(error)
    try:
        options = Options.model_validate({**stored, **said})
    except ValidationError as error:
        raise InvalidFields([*wrong, *faults_in(error.errors(include_url=False)).errors]).alone() from None
    if wrong:
        raise InvalidFields(wrong).alone()
    return options


def shown(options: Options, studio: Studio) -> dict[str, Any]:
    """What GET /options answers; a client may change a value and send all of it back."""
    values = options.model_dump() | {"CLIP_stop_at_last_layers": options.CLIP_stop_at_last_layers or 1}
    return NEUTRAL | values | {"sd_model_checkpoint": title(options.sd_model_checkpoint, studio)}


def title(model: str, studio: Studio) -> str:
    """`mini [0123456789]`: the name and the beginning of the digest, as clients list them and send them back."""
    try:
        digest = studio.models.known_digest(model)
        return f"{model} [{digest[:10]}]" if digest else model
    except SafelightError:
        # It was chosen while it was there.
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
        UnknownPart: nothing has that name.
    """
    if name not in OWN_VAE:
        studio.parts.folder.find("vae", name)
    return name
