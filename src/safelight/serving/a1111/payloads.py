"""The bodies of /sdapi/v1/txt2img and img2img, and what they mean in our words.

Names, defaults and nulls are AUTOMATIC1111's; what it does not know it passes over, and so do we, for its clients send
each other's fields. A field that it knows and we cannot honour may be sent at the value that changes nothing; at any
other it is refused by name.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from safelight.diffusion.samplers import Sampler, find_sampler
from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.prompts.lora_tags import take_loras
from safelight.prompts.several import MOST_PICTURES, Expand
from safelight.serving.a1111.options import Options
from safelight.serving.a1111.sd_upscale import SD_UPSCALE
from safelight.serving.a1111.upscalers import HIGHRES
from safelight.spec import (
    NUM_SEEDS,
    Blur,
    Fit,
    Fraction,
    Guidance,
    ImageGuidance,
    Padding,
    Prompt,
    Steps,
    Strength,
    heeded,
)

FITS: dict[int, Fit] = {0: "stretch", 1: "crop", 2: "pad"}
"""resize_mode."""
PLAIN_SAMPLERS = ("DDIM", "PLMS", "UniPC")
"""Walked over timesteps there, whatever the schedule type."""
AT_ETA_0 = {"Euler a": "Euler", "DPM2 a": "DPM2"}
"""What an ancestral sampler is without its noise."""
DYNAMIC_PROMPTS = "dynamic prompts"
"""How the extension's name begins, whatever its version."""
HYPERNETWORK = re.compile(r"<hypernet:[^<>]*>", re.IGNORECASE)
Side = Annotated[int, Field(ge=64, le=4103)]
"""Cut to a multiple of 8, as there."""
Count = Annotated[int, Field(ge=1, le=MOST_PICTURES)]


def nullable(schema: dict[str, Any]) -> None:
    """Every field that may be left out may be null."""
    for name, said in schema["properties"].items():
        if name not in schema.get("required", ()):
            schema["properties"][name] = {"anyOf": [said, {"type": "null"}]}


class Loose(BaseModel):
    """A body as AUTOMATIC1111 reads it: null leaves a field at its default, and unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=nullable, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {name: value for name, value in values.items() if value is not None}
        return values


RED_DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzIAAAAA1BMVEXIKChQLvxyAAAAC0lEQVR42mNgQAUAABAAAaoZ"
    "+IIAAAAASUVORK5CYII="
)
"""A picture for /openapi.json to give as an example: 8x8."""


class Drawing(Loose):
    """What txt2img and img2img have in common."""

    prompt: Annotated[Prompt, Field(examples=["a red apple"])] = ""
    negative_prompt: Prompt = ""
    styles: list[str] = []
    seed: Annotated[
        int,
        Field(ge=-1),
        AfterValidator(heeded),
        WithJsonSchema({"type": "integer", "minimum": -1, "maximum": NUM_SEEDS - 1}),
    ] = -1
    """-1 chooses one; picture i of a request has seed + i, and after the largest comes 0."""
    subseed: int = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    sampler_name: str = ""
    sampler_index: str = "Euler"
    """Its older name."""
    scheduler: str = "Automatic"
    """The schedule type: Automatic, Uniform, Karras, ..."""
    batch_size: Count = 1
    n_iter: Count = 1
    steps: Steps = 50
    cfg_scale: Guidance = 7.0
    width: Side = 512
    height: Side = 512
    restore_faces: bool = False
    tiling: bool = False
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: float = 1.0
    """How much noise an ancestral sampler adds: 1, or 0 for those that become another. The others have none; DDIM is
    drawn with 0, since clients send it the others' 1."""
    s_churn: float = 0
    s_tmax: float = 0
    s_tmin: float = 0
    s_noise: float = 1
    s_min_uncond: float = 0
    refiner_checkpoint: str = ""
    refiner_switch_at: float = 0
    override_settings: dict[str, Any] = {}
    override_settings_restore_afterwards: bool = True
    disable_extra_networks: bool = False
    comments: dict[str, Any] = {}
    script_name: str = ""
    script_args: list[Any] = []
    alwayson_scripts: dict[str, Any] = {}
    send_images: bool = True
    save_images: bool = False
    """Every picture is kept, whatever this says."""
    force_task_id: str = ""
    infotext: str = ""

    @property
    def num_pictures(self) -> int:
        if self.batch_size * self.n_iter > MOST_PICTURES:
            raise InvalidRequest(f"batch_size x n_iter: at most {MOST_PICTURES}, not {self.batch_size} x {self.n_iter}")
        return self.batch_size * self.n_iter

    def wishes(self, options: Options) -> dict[str, Any]:
        """In the words of `spec.Draft`."""
        sampler = self.sampler
        self.refuse_what_we_cannot(sampler)
        return {
            "prompt": take_loras(self.prompt)[0] if self.disable_extra_networks else self.prompt,
            "negative_prompt": self.negative_prompt,
            "model": options.sd_model_checkpoint,
            "seed": None if self.seed == -1 else self.seed,
            "width": self.width - self.width % 8,
            "height": self.height - self.height % 8,
            "sampler": sampler.name,
            "steps": self.steps,
            "guidance": self.cfg_scale,
            "clip_skip": options.CLIP_stop_at_last_layers,
            "vae": options.vae,
        } | self.refining()

    def refining(self) -> dict[str, Any]:
        """At 1 it never takes over; 0, which clients send when they mean nothing by it, is our own default."""
        if self.refiner_checkpoint.lower() in ("", "none") or self.refiner_switch_at >= 1:
            return {}
        return {"refiner": self.refiner_checkpoint, "refiner_switch": self.refiner_switch_at or None}

    @property
    def drawn_over(self) -> bool:
        """By the script SD upscale."""
        return False

    @property
    def expand(self) -> Expand | None:
        """The extension Dynamic Prompts: its first argument turns it on, its second draws every combination."""
        for name, said in self.alwayson_scripts.items():
            if name.casefold().startswith(DYNAMIC_PROMPTS) and not is_idle(said):
                args: Any = said.get("args") if isinstance(said, Mapping) else said
                return "combinatorial" if args[1:2] == [True] else "wildcards"
        return None

    @property
    def sampler(self) -> Sampler:
        sampler = sampler_of(self.sampler_name or self.sampler_index, self.scheduler)
        if self.eta == 0 and sampler.plain in AT_ETA_0:
            return find_sampler(sampler.name.replace(sampler.plain, AT_ETA_0[sampler.plain]))
        return sampler

    def refuse_what_we_cannot(self, sampler: Sampler) -> None:
        """Raises UnsupportedOption, or InvalidRequest (422) for scripts."""
        for name in ("restore_faces", "tiling", "subseed_strength", "s_churn", "s_min_uncond", "infotext"):
            if getattr(self, name):
                raise UnsupportedOption(name, f"{getattr(self, name)!r} is not supported here; leave it out")
        for name in ("seed_resize_from_h", "seed_resize_from_w"):
            if getattr(self, name) > 0:
                raise UnsupportedOption(name, "seeds are not resized here; leave it at -1")
        if sampler.name == "DDIM" and self.eta not in (0, 1):
            raise UnsupportedOption("eta", f"DDIM is drawn with 0, not {self.eta}")
        if sampler.stochastic:
            for name in ("eta", "s_noise"):
                if getattr(self, name) != 1:
                    raise UnsupportedOption(name, f"{sampler.plain} is drawn with 1, not {getattr(self, name)}")
        if any(self.styles):
            raise UnsupportedOption("styles", f"no style {next(filter(None, self.styles))!r}; none are kept here")
        if not self.disable_extra_networks:
            for name in ("prompt", "negative_prompt"):
                if found := HYPERNETWORK.search(getattr(self, name)):
                    raise UnsupportedOption(name, f"{found[0]} names a hypernetwork, and none are loaded here")
        if self.script_name not in ("", "None") and not self.drawn_over:
            raise no_script("script_name", self.script_name)
        for name, said in self.alwayson_scripts.items():
            read = name.casefold() == "controlnet" or name.casefold().startswith(DYNAMIC_PROMPTS)
            if not read and not is_idle(said):
                raise no_script("alwayson_scripts", name)


class TextToImageBody(Drawing):
    denoising_strength: Fraction = 0.75
    enable_hr: bool = False
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: Annotated[int, Field(ge=0, le=1000)] = 0
    hr_resize_x: Annotated[int, Field(ge=0)] = 0
    hr_resize_y: Annotated[int, Field(ge=0)] = 0
    hr_checkpoint_name: str = ""
    hr_sampler_name: str = ""
    hr_scheduler: str = ""
    hr_prompt: str = ""
    hr_negative_prompt: str = ""

    def wishes(self, options: Options) -> dict[str, Any]:
        return super().wishes(options) | {"highres": self.highres() if self.enable_hr else None}

    def highres(self) -> dict[str, Any]:
        if self.hr_upscaler not in HIGHRES:
            known = ", ".join(filter(None, HIGHRES))
            raise UnsupportedOption("hr_upscaler", f"no upscaler {self.hr_upscaler!r}; known: {known}")
        same = {
            "hr_checkpoint_name": ("", "Use same checkpoint"),
            "hr_sampler_name": ("", "Use same sampler", self.sampler_name or self.sampler_index),
            "hr_scheduler": ("", "Use same scheduler", self.scheduler),
            "hr_prompt": ("", self.prompt),
            "hr_negative_prompt": ("", self.negative_prompt),
        }
        for name, values in same.items():
            if getattr(self, name) not in values:
                raise UnsupportedOption(name, "the second pass is drawn as the first; leave it out")
        return {
            "scale": self.scale(),
            "strength": self.denoising_strength,
            "steps": self.hr_second_pass_steps or None,
            "upscaler": HIGHRES[self.hr_upscaler],
        }

    def scale(self) -> float:
        asked = {self.hr_resize_x / self.width, self.hr_resize_y / self.height} - {0.0}
        if len(asked) > 1:
            raise UnsupportedOption(
                "hr_resize_x", "the second pass keeps the proportions; give one of hr_resize_x and _y"
            )
        return asked.pop() if asked else self.hr_scale


class ImageToImageBody(Drawing):
    init_images: Annotated[list[str], Field(examples=[[RED_DOT]])] = []
    """Base64, data URLs, or http(s) URLs of public addresses; one, or one for each picture of a batch."""
    resize_mode: Annotated[int, Field(ge=0, le=3)] = 0
    """0 stretches, 1 crops, 2 fills up from the edges."""
    denoising_strength: Strength = 0.75
    image_cfg_scale: ImageGuidance = 1.5
    """How strictly models that follow instructions keep to the picture; others pass it over."""
    mask: str = ""
    """White is drawn anew; of a picture with transparency, what is opaque."""
    mask_blur: Blur | None = None
    mask_blur_x: Blur = 4
    mask_blur_y: Blur = 4
    mask_round: bool = True
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] = 0
    """What the masked part starts from: 0 its surroundings, 1 what is there."""
    inpaint_full_res: bool = True
    """Draw only the box around the mask."""
    inpaint_full_res_padding: Padding = 0
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] = 0
    initial_noise_multiplier: float = 1
    include_init_images: bool = False

    @property
    def drawn_over(self) -> bool:
        return self.script_name.casefold() == SD_UPSCALE

    @property
    def blur(self) -> float:
        return self.mask_blur_x if self.mask_blur is None else self.mask_blur

    def wishes(self, options: Options) -> dict[str, Any]:
        """All but the pictures, which are kept first."""
        if self.resize_mode not in FITS:
            raise UnsupportedOption("resize_mode", "3 (latent upscale) is not supported; 0, 1 and 2 are")
        if self.initial_noise_multiplier != 1:
            raise UnsupportedOption(
                "initial_noise_multiplier", f"{self.initial_noise_multiplier} is not supported, only 1"
            )
        wishes = super().wishes(options) | {"fit": FITS[self.resize_mode], "strength": self.denoising_strength}
        if not self.mask:
            return wishes
        if self.inpainting_fill not in (0, 1):
            raise UnsupportedOption("inpainting_fill", "2 and 3 (latent) are not supported; 0 and 1 are")
        if self.mask_blur is None and self.mask_blur_x != self.mask_blur_y:
            raise UnsupportedOption("mask_blur_y", "the mask is blurred alike in both directions")
        if not self.mask_round:
            raise UnsupportedOption("mask_round", "soft masks are not supported; leave it out")
        return wishes | {
            "mask_blur": self.blur,
            "mask_invert": bool(self.inpainting_mask_invert),
            "only_masked": self.inpaint_full_res,
            "padding": self.inpaint_full_res_padding,
        }


class Fault(BaseModel):
    """What is answered where a request cannot be met; `detail` says why."""

    error: str
    detail: str
    body: str
    errors: str


FAULTS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Fault, "description": "What was wrong with the request."}}


class Drawn(BaseModel):
    """Pictures, what was asked for, and what was done."""

    images: list[str]
    """Base64 of each picture's file; those that were interrupted are left out."""
    parameters: dict[str, Any]
    """The request, with its defaults filled in."""
    info: str
    """JSON: seeds, the model, and each picture's infotext."""


def sampler_of(name: str, schedule: str = "Automatic") -> Sampler:
    """By sampler and schedule type, or by an older name that holds both.

    Raises:
        UnknownSampler, UnsupportedOption
    """
    sampler = find_sampler(name)
    if sampler.name in PLAIN_SAMPLERS:
        return sampler
    # There, "Normal" is worked out otherwise and comes to the same noise levels as "Uniform".
    return find_sampler(name, "Uniform" if schedule.casefold() == "normal" else schedule or "Automatic")


def is_idle(script: object) -> bool:
    """Clients name their extensions also where they are off: without arguments, or with false first, or not enabled."""
    args: Any = script.get("args") if isinstance(script, Mapping) else script
    if not args:
        return True
    if not isinstance(args, list):
        return False
    units: list[Any] = args
    return units[0] is False or all(
        not unit or (isinstance(unit, Mapping) and unit.get("enabled") is False) for unit in units
    )


def no_script(where: str, name: str) -> InvalidRequest:
    error = UnsupportedOption(where, f"no script {name!r}; there are ControlNet and, for img2img, SD upscale")
    error.status = 422
    return error
