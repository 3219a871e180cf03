"""ControlNet as its extension of AUTOMATIC1111 has it: units in `alwayson_scripts`, and the routes of /controlnet.

A unit is a ControlNet, a T2I-Adapter or an IP-Adapter, told by its model. Hints are drawn at the size of the picture,
which there is called pixel perfect, so `processor_res` is passed over.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, Field, ValidationError, model_validator

from safelight.errors import InvalidRequest, SafelightError
from safelight.models.preprocessors import PREPROCESSORS
from safelight.server.a1111_payloads import FAULTS, FITS, RED_DOT, Drawing, Loose, TextToImageBody, is_idle
from safelight.server.auth import Who, parts_of
from safelight.server.fetch import fetch_picture
from safelight.server.files import as_base64
from safelight.spec import MOST_CONTROLS, ControlMode, Fit, Fraction, explain
from safelight.studio import Studio

router = APIRouter(prefix="/controlnet", tags=["AUTOMATIC1111"], responses=FAULTS)

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


async def led_by(request: Request, body: Drawing, *, init: str | None = None) -> dict[str, Any]:
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
            image = await asyncio.to_thread(parts.studio.keep, data)
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
    if (found := known.get(str(said).lower())) is None:
        raise refused(f"{name} {said!r}; known are {', '.join(known)}")
    return found


def refused(why: str) -> InvalidRequest:
    error = InvalidRequest(f"ControlNet: {why}")
    error.status = 422
    return error


class Version(BaseModel):
    version: int


class ModelList(BaseModel):
    model_list: list[str]


class ModuleList(BaseModel):
    module_list: list[str]
    module_detail: dict[str, Any]


class ControlTypes(BaseModel):
    control_types: dict[str, Any]


class UnitCount(BaseModel):
    control_net_unit_count: int


class Detection(Loose):
    controlnet_module: Annotated[str, Field(examples=["canny"])] = "none"
    controlnet_input_images: Annotated[tuple[str, ...], Field(examples=[[RED_DOT]])] = ()
    controlnet_processor_res: int = -1
    controlnet_threshold_a: float = -1
    controlnet_threshold_b: float = -1
    controlnet_masks: tuple[str, ...] = ()
    low_vram: bool = False

    @model_validator(mode="before")
    @classmethod
    def renewed(cls, values: Any) -> Any:
        """webuiapi calls the pictures as the extension once did."""
        if isinstance(values, Mapping) and "controlnet_images" in values:
            return {"controlnet_input_images": values["controlnet_images"], **values}
        return values


class Detected(BaseModel):
    info: str = "Success"
    images: list[str]
    """Base64 of a PNG each, as large as what was sent."""


@router.get("/version")
async def version(caller: Who) -> Version:
    """The third of the extension's interfaces, which has units in `alwayson_scripts` and nowhere else."""
    return Version(version=3)


@router.get("/model_list")
async def model_list(request: Request, caller: Who) -> ModelList:
    """ControlNets, T2I-Adapters and IP-Adapters by name."""
    return ModelList(model_list=await asyncio.to_thread(models_in, parts_of(request).studio))


@router.get("/module_list")
async def module_list(caller: Who) -> ModuleList:
    """The preprocessors, in the extension's names where it has them."""
    names = modules()
    detail = {name: {"model_free": False, "sliders": sliders_of(name)} for name in names}
    return ModuleList(module_list=names, module_detail=detail)


@router.get("/control_types")
async def control_types(request: Request, caller: Who) -> ControlTypes:
    """One type that has everything: names alone do not say which module a net was trained with."""
    models = await asyncio.to_thread(models_in, parts_of(request).studio)
    every = {
        "module_list": modules(),
        "model_list": ["None", *models],
        "default_option": "none",
        "default_model": "None",
    }
    return ControlTypes(control_types={"All": every})


@router.get("/settings")
async def settings(caller: Who) -> UnitCount:
    """How many units a picture may have."""
    return UnitCount(control_net_unit_count=MOST_CONTROLS)


@router.post("/detect")
async def detect(request: Request, caller: Who, body: Annotated[Detection, Body()]) -> Detected:
    """What a net would be shown of these pictures."""
    caller.require("draw")
    name = preprocessor_of(body.controlnet_module)
    if not body.controlnet_input_images:
        raise refused("No image selected")
    low, high = body.controlnet_threshold_a, body.controlnet_threshold_b
    thresholds = (low, high) if name == "canny" and low >= 0 and high >= 0 else None
    studio, most = parts_of(request).studio, parts_of(request).settings.max_file_bytes
    images: list[str] = []
    for source in body.controlnet_input_images:
        data = await fetch_picture(source, max_bytes=most)

        def make(data: bytes = data) -> str:
            image = studio.open(data)
            if image.width * image.height > studio.settings.max_output_pixels:
                raise refused(f"the picture has more than {studio.settings.max_output_pixels} pixels")
            return as_base64(studio.preprocessors.make_hint(name, image, thresholds=thresholds))

        images.append(await asyncio.to_thread(make))
    return Detected(images=images)


def modules() -> list[str]:
    return [*MODULES, *own_names(), "ip-adapter-auto"]


def models_in(studio: Studio) -> list[str]:
    folder = studio.controls.folder
    return [*folder.paths("control"), *folder.paths("ip-adapter")]


def sliders_of(module: str) -> list[dict[str, Any]]:
    if module != "canny":
        return []
    return [
        {"name": "Canny Low Threshold", "value": 100, "min": 1, "max": 255},
        {"name": "Canny High Threshold", "value": 200, "min": 1, "max": 255},
    ]
