"""The bodies of /sdapi/v1/txt2img and img2img, and what they mean in our words.

Names, defaults and nulls are AUTOMATIC1111's; what it does not know it passes over, and so do we, for its clients send
each other's fields. A field that it knows and we cannot honour may be sent at the value that changes nothing; at any
other it is refused by name.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema, model_validator

from safelight.diffusion.samplers import Sampler, find_sampler
from safelight.errors import InvalidField, SafelightError, UnknownSampler, UnsupportedOption
from safelight.prompts.expand import MAX_PICTURES, Expand
from safelight.prompts.lora_tags import extract_loras
from safelight.serving.a1111.body import FITS, RED_DOT, A1111Body
from safelight.serving.a1111.options import Options
from safelight.serving.a1111.scripts import (
    CONTROLNET,
    DYNAMIC_PROMPTS,
    Script,
    disagreements,
    fields_of,
    no_script,
    with_panels,
)
from safelight.serving.a1111.sd_upscale import SD_UPSCALE
from safelight.serving.a1111.unit import Unit, units_in
from safelight.serving.a1111.upscalers import HIGHRES
from safelight.spec import Draft
from safelight.spec.fields import (
    NUM_SEEDS,
    Blur,
    Fraction,
    Guidance,
    ImageGuidance,
    Padding,
    Prompt,
    Steps,
    Strength,
    heeded,
)
from safelight.validation import each, wrong_in

PLAIN_SAMPLERS = ("DDIM", "PLMS", "UniPC")
"""Walked over timesteps there, whatever the schedule type."""
AT_ETA_0 = {"Euler a": "Euler", "DPM2 a": "DPM2"}
"""What an ancestral sampler is without its noise."""
HYPERNETWORK = re.compile(r"<hypernet:[^<>]*>", re.IGNORECASE)
SETTINGS = "override_settings"
WORDS = {
    "model": f"{SETTINGS}.sd_model_checkpoint",
    "sampler": "sampler_name",
    "guidance": "cfg_scale",
    "clip_skip": f"{SETTINGS}.CLIP_stop_at_last_layers",
    "vae": f"{SETTINGS}.sd_vae",
    "refiner": "refiner_checkpoint",
    "refiner_switch": "refiner_switch_at",
    "highres": "enable_hr",
    "highres.scale": "hr_scale",
    "highres.strength": "denoising_strength",
    "highres.steps": "hr_second_pass_steps",
    "highres.upscaler": "hr_upscaler",
    "init": "init_images",
    "strength": "denoising_strength",
    "fit": "resize_mode",
    "image_guidance": "image_cfg_scale",
    "mask_invert": "inpainting_mask_invert",
    "only_masked": "inpaint_full_res",
    "padding": "inpaint_full_res_padding",
    "scale": "script_args",
    "tiles": "script_args",
    "controls": f"alwayson_scripts.{CONTROLNET}",
    "picture_prompts": f"alwayson_scripts.{CONTROLNET}",
}
"""Their names for the fields of our drafts."""
STORED = "0" * 64
"""Stands for a picture that has not been looked at yet."""
Side = Annotated[int, Field(ge=64, le=4103)]
"""Cut to a multiple of 8, as there."""
Count = Annotated[int, Field(ge=1, le=MAX_PICTURES)]


class GenerationBody(A1111Body):
    """What txt2img and img2img have in common."""

    prompt: Annotated[Prompt, Field(examples=["a red apple"])] = ""
    negative_prompt: Prompt = ""
    styles: tuple[str, ...] = ()
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
    override_settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    override_settings_restore_afterwards: bool = True
    disable_extra_networks: bool = False
    comments: dict[str, Any] = Field(default_factory=dict[str, Any])
    script_name: str = ""
    script_args: tuple[Any, ...] = ()
    alwayson_scripts: dict[str, Script] = Field(default_factory=dict[str, Script])
    send_images: bool = True
    save_images: bool = False
    """Every picture is kept, whatever this says."""
    force_task_id: str = ""
    infotext: str = ""

    @model_validator(mode="before")
    @classmethod
    def with_what_panels_say(cls, values: Any) -> Any:
        return with_panels(values) if isinstance(values, Mapping) else values

    @property
    def num_pictures(self) -> int:
        return self.batch_size * self.n_iter

    @property
    def words(self) -> Mapping[str, str]:
        """Its own names for the fields of a draft."""
        return WORDS

    @property
    def starts_from(self) -> dict[str, Any]:
        """The fields of a draft that are pictures which are kept later."""
        return {}

    def fields(self, options: Options) -> dict[str, Any]:
        """In the words of `spec.Draft`, all but the pictures."""
        return self.plain_fields(options) | {"sampler": self.sampler.name}

    def plain_fields(self, options: Options) -> dict[str, Any]:
        """All but the sampler, which there may be none for."""
        return {
            "prompt": extract_loras(self.prompt)[0] if self.disable_extra_networks else self.prompt,
            "negative_prompt": self.negative_prompt,
            "model": options.sd_model_checkpoint,
            "seed": None if self.seed == -1 else self.seed,
            "width": self.width - self.width % 8,
            "height": self.height - self.height % 8,
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
        for name, script in self.alwayson_scripts.items():
            if name.casefold().startswith(DYNAMIC_PROMPTS) and not script.is_idle:
                return "combinatorial" if script.args[1:2] == [True] else "wildcards"
        return None

    @property
    def units(self) -> dict[str, Unit]:
        """ControlNet's, by their fields.

        Raises:
            SafelightError: they cannot be read.
        """
        units: dict[str, Unit] = {}
        for name, script in self.alwayson_scripts.items():
            if name.casefold() == CONTROLNET:
                units |= units_in(f"alwayson_scripts.{name}.args", script.args)
        return units

    def refuse_units(self, units: Mapping[str, Unit]) -> Iterator[SafelightError]:
        """What is wrong with them in this body."""
        return iter(())

    @property
    def sampler(self) -> Sampler:
        sampler = sampler_of(self.sampler_name or self.sampler_index, self.scheduler)
        if self.eta == 0 and sampler.plain in AT_ETA_0:
            return find_sampler(sampler.name.replace(sampler.plain, AT_ETA_0[sampler.plain]))
        return sampler

    def clashes(self) -> Iterator[SafelightError]:
        if self.num_pictures > MAX_PICTURES:
            why = f"{self.batch_size} x n_iter {self.n_iter} are more than {MAX_PICTURES} pictures"
            yield InvalidField("batch_size", why, "n_iter")
        try:
            sampler = self.sampler
        except SafelightError as error:
            error.param = "sampler_name" if isinstance(error, UnknownSampler) else "scheduler"
            yield error
        else:
            yield from self.noise_we_do_not_add(sampler)
        yield from self.what_we_do_not_do()
        yield from self.scripts_we_do_not_have()
        try:
            yield from self.refuse_units(self.units)
        except SafelightError as error:
            yield from each(error)
        yield from wrong_in(Draft, self.plain_fields(Options()) | self.starts_from, self.words)

    def noise_we_do_not_add(self, sampler: Sampler) -> Iterator[SafelightError]:
        if sampler.name == "DDIM" and self.eta not in (0, 1):
            yield UnsupportedOption("eta", f"DDIM is drawn with 0, not {self.eta}", "sampler_name")
        if sampler.stochastic:
            for name in ("eta", "s_noise"):
                if (said := getattr(self, name)) != 1:
                    yield UnsupportedOption(name, f"{sampler.plain} is drawn with 1, not {said}", "sampler_name")

    def what_we_do_not_do(self) -> Iterator[SafelightError]:
        for name in ("restore_faces", "tiling", "subseed_strength", "s_churn", "s_min_uncond", "infotext"):
            if said := getattr(self, name):
                yield UnsupportedOption(name, f"{said!r} is not supported here; leave it out")
        for name in ("seed_resize_from_h", "seed_resize_from_w"):
            if getattr(self, name) > 0:
                yield UnsupportedOption(name, "seeds are not resized here; leave it at -1")
        if any(self.styles):
            yield UnsupportedOption("styles", f"no style {next(filter(None, self.styles))!r}; none are kept here")
        for name in () if self.disable_extra_networks else ("prompt", "negative_prompt"):
            if found := HYPERNETWORK.search(getattr(self, name)):
                yield UnsupportedOption(name, f"{found[0]} names a hypernetwork, and none are loaded here")

    def scripts_we_do_not_have(self) -> Iterator[SafelightError]:
        if self.script_name not in ("", "None") and not self.drawn_over:
            yield no_script("script_name", self.script_name)
        for name, script in self.alwayson_scripts.items():
            yield from disagreements(name, script, self.__dict__)
            read = name.casefold() == CONTROLNET or fields_of(name.casefold(), script.args)
            if name.casefold().startswith(DYNAMIC_PROMPTS):
                if not script.is_idle and script.args[0] is not True:
                    where = f"alwayson_scripts.{name}.args.0"
                    yield InvalidField(where, f"turns it on: true or false, not {script.args[0]!r}")
            elif not read and not script.is_idle:
                yield no_script("alwayson_scripts", name)


class TextToImageBody(GenerationBody):
    denoising_strength: Fraction = 0.75
    enable_hr: bool = False
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: Annotated[int, Field(ge=0, le=1000)] = 0
    hr_resize_x: Annotated[int, Field(ge=0, le=32_768)] = 0
    hr_resize_y: Annotated[int, Field(ge=0, le=32_768)] = 0
    hr_checkpoint_name: str = ""
    hr_sampler_name: str = ""
    hr_scheduler: str = ""
    hr_prompt: str = ""
    hr_negative_prompt: str = ""

    @property
    def words(self) -> Mapping[str, str]:
        resized = "hr_resize_x" if self.hr_resize_x else "hr_resize_y" if self.hr_resize_y else "hr_scale"
        return {**WORDS, "highres.scale": resized}

    def plain_fields(self, options: Options) -> dict[str, Any]:
        return super().plain_fields(options) | {"highres": self.highres() if self.enable_hr else None}

    def highres(self) -> dict[str, Any]:
        known = {"upscaler": HIGHRES[self.hr_upscaler]} if self.hr_upscaler in HIGHRES else {}
        return known | {
            "scale": max(self.scales) if self.scales else self.hr_scale,
            "strength": self.denoising_strength,
            "steps": self.hr_second_pass_steps or None,
        }

    @property
    def scales(self) -> set[float]:
        """As the sizes that are asked for have it."""
        return {self.hr_resize_x / self.width, self.hr_resize_y / self.height} - {0.0}

    def clashes(self) -> Iterator[SafelightError]:
        yield from super().clashes()
        if not self.enable_hr:
            return
        if self.hr_upscaler not in HIGHRES:
            known = ", ".join(filter(None, HIGHRES))
            yield UnsupportedOption("hr_upscaler", f"no upscaler {self.hr_upscaler!r}; known: {known}")
        same = {
            "hr_checkpoint_name": ("", "Use same checkpoint"),
            "hr_sampler_name": ("", "Use same sampler", self.sampler_name or self.sampler_index),
            "hr_scheduler": ("", "Use same scheduler", self.scheduler),
            "hr_prompt": ("", self.prompt),
            "hr_negative_prompt": ("", self.negative_prompt),
        }
        for name, values in same.items():
            if getattr(self, name) not in values:
                yield UnsupportedOption(name, "the second pass is drawn as the first; leave it out")
        if len(self.scales) > 1:
            yield UnsupportedOption(
                "hr_resize_x", "the second pass keeps the proportions; give one of hr_resize_x and _y", "hr_resize_y"
            )

    def refuse_units(self, units: Mapping[str, Unit]) -> Iterator[SafelightError]:
        for place, unit in units.items():
            if not unit.image:
                yield InvalidField(f"{place}.image", "a unit has no image")
            if self.enable_hr and unit.hr_option.lower() not in ("both", "0"):
                yield InvalidField(f"{place}.hr_option", "a unit acts in both passes here")


class ImageToImageBody(GenerationBody):
    init_images: Annotated[tuple[str, ...], Field(examples=[[RED_DOT]])] = ()
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

    @property
    def starts_from(self) -> dict[str, Any]:
        return {"init": STORED} | ({"mask": STORED} if self.mask else {})

    def plain_fields(self, options: Options) -> dict[str, Any]:
        fields = super().plain_fields(options) | {"strength": self.denoising_strength}
        if self.resize_mode in FITS:
            fields["fit"] = FITS[self.resize_mode]
        if not self.mask:
            return fields
        return fields | {
            "mask_blur": self.blur,
            "mask_invert": bool(self.inpainting_mask_invert),
            "only_masked": self.inpaint_full_res,
            "padding": self.inpaint_full_res_padding,
        }

    def clashes(self) -> Iterator[SafelightError]:
        if not self.init_images:
            yield InvalidField("init_images", "name at least one picture, in base64")
        if len(self.init_images) > self.batch_size:
            why = f"{len(self.init_images)} are more than the batch_size of {self.batch_size}"
            yield InvalidField("init_images", why, "batch_size")
        yield from super().clashes()
        if self.resize_mode not in FITS:
            yield UnsupportedOption("resize_mode", "3 (latent upscale) is not supported; 0, 1 and 2 are")
        if self.initial_noise_multiplier != 1:
            why = f"{self.initial_noise_multiplier} is not supported, only 1"
            yield UnsupportedOption("initial_noise_multiplier", why)
        if self.mask:
            yield from self.masks_we_do_not_have()
        if self.drawn_over:
            yield from self.not_drawn_over()

    def masks_we_do_not_have(self) -> Iterator[SafelightError]:
        if self.inpainting_fill not in (0, 1):
            yield UnsupportedOption("inpainting_fill", "2 and 3 (latent) are not supported; 0 and 1 are")
        if self.mask_blur is None and self.mask_blur_x != self.mask_blur_y:
            yield UnsupportedOption("mask_blur_y", "the mask is blurred alike in both directions", "mask_blur_x")
        if not self.mask_round:
            yield UnsupportedOption("mask_round", "soft masks are not supported; leave it out")

    def not_drawn_over(self) -> Iterator[SafelightError]:
        if self.mask:
            yield InvalidField("mask", "SD upscale draws a whole picture over; leave one of them out", "script_name")


class A1111Error(BaseModel):
    """What is answered where a request cannot be met; `detail` says why."""

    error: str
    detail: str
    body: str
    errors: str


FAULTS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": A1111Error, "description": "What was wrong with the request."}
}


class PicturesAnswer(BaseModel):
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
