"""The common fields of /sdapi/v1/txt2img and img2img, and their translation to fields of a draft.

Names, defaults and nulls are AUTOMATIC1111's. It ignores unknown fields, and so do we, since its clients send each
other's fields. A field that it has and we do not support may be sent with its neutral value; any other value is
refused, naming the field.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from safelight.diffusion.samplers import Sampler, find_sampler
from safelight.errors import InvalidField, SafelightError, UnknownSampler, UnsupportedOption
from safelight.prompts.expand import MAX_PICTURES, Expand
from safelight.prompts.lora_tags import extract_loras
from safelight.serving.a1111.body import A1111Body
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
from safelight.serving.a1111.unit import Unit, units_in
from safelight.spec import Draft
from safelight.spec.fields import NUM_SEEDS, Guidance, Prompt, Steps, heeded
from safelight.validation import errors_in, single_errors

PLAIN_SAMPLERS = ("DDIM", "PLMS", "UniPC")
"""There, these run over timesteps, whatever the schedule type."""
AT_ETA_0 = {"Euler a": "Euler", "DPM2 a": "DPM2"}
"""The sampler that an ancestral one becomes without its noise."""
HYPERNETWORK = re.compile(r"<hypernet:[^<>]*>", re.IGNORECASE)
SETTINGS = "override_settings"
FIELD_NAMES = {
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
"""AUTOMATIC1111's names by the fields of our drafts."""
Side = Annotated[int, Field(ge=64, le=4103)]
"""Side length in pixels; rounded down to a multiple of 8, as there."""
Count = Annotated[int, Field(ge=1, le=MAX_PICTURES)]


class GenerationBody(A1111Body):
    """The fields that txt2img and img2img share."""

    prompt: Annotated[Prompt, Field(examples=["a red apple"])] = ""
    negative_prompt: Prompt = ""
    styles: tuple[str, ...] = ()
    seed: Annotated[
        int,
        Field(ge=-1),
        AfterValidator(heeded),
        WithJsonSchema({"type": "integer", "minimum": -1, "maximum": NUM_SEEDS - 1}),
    ] = -1
    """-1 is a random seed; picture i of a request has seed + i, and 0 follows the largest."""
    subseed: int = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    sampler_name: str = ""
    sampler_index: str = "Euler"
    """The older name of `sampler_name`."""
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
    """Noise of ancestral samplers: 1, or 0 for those that then equal another sampler. Other samplers have none; DDIM
    uses 0, since clients also send it 1."""
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
    """Ignored: every picture is stored."""
    force_task_id: str = ""
    infotext: str = ""

    @model_validator(mode="before")
    @classmethod
    def add_panel_values(cls, values: Any) -> Any:
        return with_panels(values) if isinstance(values, Mapping) else values

    @property
    def num_pictures(self) -> int:
        return self.batch_size * self.n_iter

    @property
    def field_names(self) -> Mapping[str, str]:
        """This body's names by the fields of a draft."""
        return FIELD_NAMES

    @property
    def placeholder_images(self) -> dict[str, Any]:
        """Placeholders for the draft fields whose pictures are stored after validation."""
        return {}

    def fields(self, options: Options) -> dict[str, Any]:
        """The fields of a `spec.Draft`, without its pictures."""
        return self.fields_without_sampler(options) | {"sampler": self.sampler.name}

    def fields_without_sampler(self, options: Options) -> dict[str, Any]:
        """As `fields`, but without the sampler, whose name may be invalid."""
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
        } | self.refiner_fields()

    def refiner_fields(self) -> dict[str, Any]:
        """The draft's refiner fields: at 1 it never takes over; 0, which clients send by default, is our default."""
        if self.refiner_checkpoint.lower() in ("", "none") or self.refiner_switch_at >= 1:
            return {}
        return {"refiner": self.refiner_checkpoint, "refiner_switch": self.refiner_switch_at or None}

    @property
    def uses_sd_upscale(self) -> bool:
        """Whether the request uses the script SD upscale."""
        return False

    @property
    def expand(self) -> Expand | None:
        """The extension Dynamic Prompts: its first argument enables it, its second selects all combinations."""
        for name, script in self.alwayson_scripts.items():
            if name.casefold().startswith(DYNAMIC_PROMPTS) and not script.is_idle:
                return "combinatorial" if script.args[1:2] == [True] else "wildcards"
        return None

    @property
    def units(self) -> dict[str, Unit]:
        """The units of ControlNet, by their field paths.

        Raises:
            SafelightError: they are invalid.
        """
        units: dict[str, Unit] = {}
        for name, script in self.alwayson_scripts.items():
            if name.casefold() == CONTROLNET:
                units |= units_in(f"alwayson_scripts.{name}.args", script.args)
        return units

    def check_units(self, units: Mapping[str, Unit]) -> Iterator[SafelightError]:
        """Yield errors of the units in this body."""
        return iter(())

    @property
    def sampler(self) -> Sampler:
        sampler = sampler_of(self.sampler_name or self.sampler_index, self.scheduler)
        if self.eta == 0 and sampler.plain in AT_ETA_0:
            return find_sampler(sampler.name.replace(sampler.plain, AT_ETA_0[sampler.plain]))
        return sampler

    def clashes(self) -> Iterator[SafelightError]:
        if self.num_pictures > MAX_PICTURES:
            reason = f"{self.batch_size} x n_iter {self.n_iter} are more than {MAX_PICTURES} pictures"
            yield InvalidField("batch_size", reason, "n_iter")
        try:
            sampler = self.sampler
        except SafelightError as error:
            error.param = "sampler_name" if isinstance(error, UnknownSampler) else "scheduler"
            yield error
        else:
            yield from self.check_noise(sampler)
        yield from self.check_unsupported()
        yield from self.check_scripts()
        try:
            yield from self.check_units(self.units)
        except SafelightError as error:
            yield from single_errors(error)
        yield from errors_in(Draft, self.fields_without_sampler(Options()) | self.placeholder_images, self.field_names)

    def check_noise(self, sampler: Sampler) -> Iterator[SafelightError]:
        if sampler.name == "DDIM" and self.eta not in (0, 1):
            yield UnsupportedOption("eta", f"DDIM always uses 0 here, not {self.eta}", "sampler_name")
        if sampler.stochastic:
            for name in ("eta", "s_noise"):
                if (value := getattr(self, name)) != 1:
                    yield UnsupportedOption(name, f"{sampler.plain} always uses 1 here, not {value}", "sampler_name")

    def check_unsupported(self) -> Iterator[SafelightError]:
        for name in ("restore_faces", "tiling", "subseed_strength", "s_churn", "s_min_uncond", "infotext"):
            if value := getattr(self, name):
                yield UnsupportedOption(name, f"{value!r} is not supported here; leave it out")
        for name in ("seed_resize_from_h", "seed_resize_from_w"):
            if getattr(self, name) > 0:
                yield UnsupportedOption(name, "seeds are not resized here; leave it at -1")
        if any(self.styles):
            yield UnsupportedOption("styles", f"no style {next(filter(None, self.styles))!r}; this server has none")
        for name in () if self.disable_extra_networks else ("prompt", "negative_prompt"):
            if found := HYPERNETWORK.search(getattr(self, name)):
                yield UnsupportedOption(name, f"{found[0]} names a hypernetwork, which are not supported here")

    def check_scripts(self) -> Iterator[SafelightError]:
        if self.script_name not in ("", "None") and not self.uses_sd_upscale:
            yield no_script("script_name", self.script_name)
        for name, script in self.alwayson_scripts.items():
            yield from disagreements(name, script, self.__dict__)
            is_read = name.casefold() == CONTROLNET or fields_of(name.casefold(), script.args)
            if name.casefold().startswith(DYNAMIC_PROMPTS):
                if not script.is_idle and script.args[0] is not True:
                    where = f"alwayson_scripts.{name}.args.0"
                    yield InvalidField(where, f"enables the extension: true or false, not {script.args[0]!r}")
            elif not is_read and not script.is_idle:
                yield no_script("alwayson_scripts", name)


def sampler_of(name: str, schedule: str = "Automatic") -> Sampler:
    """Find a sampler by its name and schedule type, or by an older name that contains both.

    Raises:
        UnknownSampler, UnsupportedOption
    """
    sampler = find_sampler(name)
    if sampler.name in PLAIN_SAMPLERS:
        return sampler
    # There, "Normal" is computed differently but has the same noise levels as "Uniform".
    return find_sampler(name, "Uniform" if schedule.casefold() == "normal" else schedule or "Automatic")
