"""ControlNet as its extension of AUTOMATIC1111 has it: units in `alwayson_scripts`, and what they mean in our words.

A unit is a ControlNet, a T2I-Adapter or an IP-Adapter, told by its model. Hints are drawn at the size of the picture,
which there is called pixel perfect, so `processor_res` is passed over.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Request
from pydantic import Field, ValidationError, model_validator

from safelight.errors import InvalidRequest, SafelightError
from safelight.models.vision.preprocessors import PREPROCESSORS
from safelight.serving.a1111.payloads import FITS, Drawing, Loose, TextToImageBody, is_idle
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.keys import Caller
from safelight.spec import ControlMode, Fit, Fraction, HintKind, explain
from safelight.studio import Studio

SCRIPT = "controlnet"
MODULES = {
    "none": "none",
    "canny": "canny",
    "invert": "invert",
    "scribble_xdog": "scribble",
    "lineart_standard": "lineart",
    "tile_resample": "tile",
}
"""Its modules that we have too; our own names are taken as well. The others need networks of their own."""
MODES: Mapping[str, ControlMode] = {
    "0": "balanced",
    "1": "prompt",
    "2": "control",
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "control",
}
RESIZE_MODES: Mapping[str, Fit] = {
    **{str(number): fit for number, fit in FITS.items()},
    "just resize": "stretch",
    "crop and resize": "crop",
    "scale to fit (inner fit)": "crop",
    "inner fit (scale to fit)": "crop",
    "resize and fill": "pad",
    "envelope (outer fit)": "pad",
    "outer fit (shrink to fit)": "pad",
}
UNION_TYPES: Mapping[str, HintKind | None] = {
    "openpose": "pose",
    "depth": "depth",
    "soft edge": "soft-edge",
    "hard edge": "hard-edge",
    "normal map": "normal",
    "segmentation": "segmentation",
    "tile": "tile",
    "inpaint": "repaint",
    "unknown": None,
}
OLD_NAMES = {"guidance": "guidance_end", "lowvram": "low_vram", "input_image": "image", "guessmode": "control_mode"}
WHITES_FIRST = re.compile(r" \(.*\)$")
"""`invert (from white bg & black line)`."""


class Unit(Loose):
    """One of `alwayson_scripts.controlnet.args`."""

    enabled: bool = True
    module: str = "none"
    model: str = "None"
    weight: Annotated[float, Field(ge=0, le=2)] = 1.0
    image: Any = None
    """Base64, or `{"image": base64}`; in img2img, nothing means the picture that is started from."""
    mask: Any = None
    resize_mode: str | int = "Crop and Resize"
    processor_res: int = -1
    threshold_a: float = -1
    threshold_b: float = -1
    guidance_start: Fraction = 0.0
    guidance_end: Fraction = 1.0
    control_mode: str | int = "Balanced"
    union_control_type: str = "Unknown"
    pixel_perfect: bool = False
    hr_option: str | int = "Both"
    save_detected_map: bool = True
    advanced_weighting: tuple[float, ...] = ()
    effective_region_mask: Any = None
    ipadapter_input: Any = None

    @model_validator(mode="before")
    @classmethod
    def renewed(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {OLD_NAMES.get(str(name), name): value for name, value in values.items()}
        return values

    @property
    def source(self) -> str | None:
        """The picture, in whichever way it was sent."""
        image: Any = self.image
        if isinstance(image, list | tuple) and image:
            image = image[0]
        if isinstance(image, Mapping):
            image = image.get("image")
        return str(image) if image else None

    @property
    def shows_picture(self) -> bool:
        """A picture prompt, by the name of its module or its model."""
        return self.module.lower().startswith("ip-adapter") or "ip-adapter" in self.model.lower()

    def wish(self, image: str, studio: Studio, *, highres: bool) -> tuple[str, dict[str, Any]]:
        """Which field of a draft it belongs to, and what it says there."""
        for name in ("mask", "advanced_weighting", "effective_region_mask", "ipadapter_input"):
            if getattr(self, name):
                raise refused(f"{name} is not supported here; leave it out")
        if highres and str(self.hr_option).lower() not in ("both", "0"):
            raise refused("hr_option: a unit acts in both passes here")
        common = {
            "model": find(self.model, studio, picture=self.shows_picture),
            "image": image,
            "weight": self.weight,
            "start": self.guidance_start,
            "end": self.guidance_end,
        }
        if self.shows_picture:
            return "picture_prompts", common
        preprocessor = preprocessor_of(self.module)
        given = preprocessor == "canny" and self.threshold_a >= 0 and self.threshold_b >= 0
        return "controls", common | {
            "preprocessor": preprocessor,
            "thresholds": (self.threshold_a, self.threshold_b) if given else None,
            "fit": one_of("resize_mode", self.resize_mode, RESIZE_MODES),
            "mode": one_of("control_mode", self.control_mode, MODES),
            "hint_kind": one_of("union_control_type", self.union_control_type, UNION_TYPES),
        }


def units_of(body: Drawing) -> list[Unit]:
    """Those that are switched on.

    Raises:
        InvalidRequest: 422, one of them cannot be read.
    """
    for name, said in body.alwayson_scripts.items():
        if name.lower() == SCRIPT and not is_idle(said):
            args: Any = said.get("args") if isinstance(said, Mapping) else said
            try:
                units = [Unit.model_validate(unit) for unit in args or () if isinstance(unit, Mapping)]
            except ValidationError as error:
                raise refused(explain(error, list(Unit.model_fields))) from None
            return [unit for unit in units if unit.enabled]
    return []


async def led_by(request: Request, caller: Caller, body: Drawing, *, init: str | None = None) -> dict[str, Any]:
    """What the units say in the words of a draft; their pictures are stored. `init` is for those that have none.

    Raises:
        InvalidRequest: 422, one of them cannot be honoured.
    """
    parts = parts_of(request)
    highres = isinstance(body, TextToImageBody) and body.enable_hr
    wishes: dict[str, list[dict[str, Any]]] = {}
    for unit in units_of(body):
        image = init
        if unit.source:
            data = await fetch_picture(unit.source, max_bytes=parts.settings.max_file_bytes)
            image = await parts.studio.take(data, tenant=caller.tenant)
        if image is None:
            raise refused("a unit has no image")
        field, wish = await asyncio.to_thread(unit.wish, image, parts.studio, highres=highres)
        wishes.setdefault(field, []).append(wish)
    return wishes


def preprocessor_of(module: str) -> str:
    name = WHITES_FIRST.sub("", module.strip()).lower()
    found = MODULES.get(name, name)
    if found not in PREPROCESSORS and not found.startswith("depth/"):
        raise refused(f"no module {module!r}; there are {', '.join([*MODULES, *own_names()])}")
    return found


def own_names() -> list[str]:
    return [name for name in PREPROCESSORS if name not in MODULES]


def find(model: str, studio: Studio, *, picture: bool) -> str:
    """The name, from a title that may end in a hash."""
    name = re.sub(r" \[[0-9a-f]{1,64}\]$", "", model.strip())
    if name.lower() in ("", "none"):
        raise refused("a unit has no model; GET /controlnet/model_list lists them")
    try:
        studio.controls.folder.path("ip-adapter" if picture else "control", name)
    except SafelightError as error:
        raise refused(str(error)) from None
    return name


def one_of(name: str, said: str | int, known: Mapping[str, Any]) -> Any:
    if str(said).lower() not in known:
        raise refused(f"{name} {said!r}; known are {', '.join(known)}")
    return known[str(said).lower()]


def refused(why: str) -> InvalidRequest:
    error = InvalidRequest(f"ControlNet: {why}")
    error.status = 422
    return error
