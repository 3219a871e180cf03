"""/controlnet, the routes of AUTOMATIC1111's extension: which nets and modules there are, and hints of pictures."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, Field, model_validator

from safelight.errors import InvalidField, SafelightError
from safelight.serving.a1111.body import RED_DOT, A1111Body
from safelight.serving.a1111.payloads import FAULTS
from safelight.serving.a1111.unit import HIGHEST_THRESHOLD, MODULES, own_names, preprocessor_of
from safelight.serving.http.auth import Who
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.http.parts import parts_of
from safelight.serving.native.files import as_base64
from safelight.spec.effects import MAX_CONTROLS
from safelight.studio import Studio
from safelight.validation import concerning

router = APIRouter(prefix="/controlnet", tags=["AUTOMATIC1111"], responses=FAULTS)


class ControlNetVersion(BaseModel):
    version: int


class ControlModelList(BaseModel):
    model_list: list[str]


class ModuleList(BaseModel):
    module_list: list[str]
    module_detail: dict[str, Any]


class ControlTypes(BaseModel):
    control_types: dict[str, Any]


class UnitCount(BaseModel):
    control_net_unit_count: int


class Detection(A1111Body):
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

    @property
    def thresholds(self) -> tuple[float, float] | None:
        """Below 0, they are the module's own; those of other modules are passed over."""
        low, high = self.controlnet_threshold_a, self.controlnet_threshold_b
        return (low, high) if self.preprocessor == "canny" and low >= 0 and high >= 0 else None

    @property
    def preprocessor(self) -> str:
        """
        Raises:
            InvalidField: nothing here does what the module does.
        """
        return preprocessor_of("controlnet_module", self.controlnet_module)

    def clashes(self) -> Iterator[SafelightError]:
        if not self.controlnet_input_images:
            yield InvalidField("controlnet_input_images", "No image selected")
        try:
            thresholds = self.thresholds or ()
        except InvalidField as error:
            yield error
        else:
            for name, value in zip(("controlnet_threshold_a", "controlnet_threshold_b"), thresholds, strict=False):
                if value > HIGHEST_THRESHOLD:
                    yield InvalidField(name, f"at most {HIGHEST_THRESHOLD}, not {value:g}", "controlnet_module")


class Detected(BaseModel):
    info: str = "Success"
    images: list[str]
    """Base64 of a PNG each, as large as what was sent."""


@router.get("/version")
async def version(caller: Who) -> ControlNetVersion:
    """The third of the extension's interfaces, which has units in `alwayson_scripts` and nowhere else."""
    return ControlNetVersion(version=3)


@router.get("/model_list")
async def model_list(request: Request, caller: Who) -> ControlModelList:
    """ControlNets, T2I-Adapters and IP-Adapters by name."""
    return ControlModelList(model_list=await asyncio.to_thread(models_in, parts_of(request).studio))


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
    return UnitCount(control_net_unit_count=MAX_CONTROLS)


@router.post("/detect")
async def detect(request: Request, caller: Who, body: Annotated[Detection, Body()]) -> Detected:
    """What a net would be shown of these pictures."""
    caller.require("draw")
    studio, most = parts_of(request).studio, parts_of(request).settings.max_file_bytes
    images: list[str] = []
    for place, source in enumerate(body.controlnet_input_images):
        field = f"controlnet_input_images.{place}"
        with concerning(field):
            data = await fetch_picture(source, max_bytes=most)
            room, turn = studio.image_pool, await studio.claim(data, tenant=caller.tenant)
            image = await room.work(turn, studio.open, data)
        if image.width * image.height > studio.settings.max_output_pixels:
            raise InvalidField(field, f"the picture has more than {studio.settings.max_output_pixels} pixels")
        hint = await studio.make_hint(body.preprocessor, image, thresholds=body.thresholds, tenant=caller.tenant)
        images.append(await room.work(await studio.claim(hint, tenant=caller.tenant), as_base64, hint))
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
