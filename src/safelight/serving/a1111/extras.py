"""/sdapi/v1: upscaling finished pictures, and reading their metadata."""

import asyncio
import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from safelight.assets.encode import Encoding
from safelight.assets.read_metadata import read_metadata
from safelight.errors import InvalidField, JobCancelled, SafelightError, UnknownModel, UnsupportedOption
from safelight.finish import derive
from safelight.imaging.canvas import upscale
from safelight.models.vision.upscalers import LANCZOS, Upscalers
from safelight.resolve.resolve import resolve_upscale
from safelight.serving.a1111.answers import ERROR_RESPONSES
from safelight.serving.a1111.body import RED_DOT, A1111Body
from safelight.serving.a1111.info import infotext_of, items_of, parameters_of
from safelight.serving.a1111.progress import active_requests_of
from safelight.serving.a1111.upscalers import NONE, method_for
from safelight.serving.http.auth import CurrentCaller
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.service import SubmitOptions
from safelight.serving.jobs.tables import JobRow
from safelight.spec.fields import MAX_SCALE
from safelight.studio import Studio
from safelight.validation import default_field, rename_fields

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=ERROR_RESPONSES)

MAX_PICTURES = 100
Visibility = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]


Encoded = Annotated[str, Field(examples=[RED_DOT])]
"""A picture as base64, a data URL, or an address to fetch it from."""


class UpscaleOptions(A1111Body):
    """How a picture is upscaled; the upscaler "None" leaves it unchanged."""

    resize_mode: Literal[0, 1] = 0
    """0: `upscaling_resize` times as large; 1: until it covers `upscaling_resize_w` x `upscaling_resize_h`."""
    show_extras_results: bool = True
    gfpgan_visibility: Visibility = 0
    codeformer_visibility: Visibility = 0
    codeformer_weight: Visibility = 0
    upscaling_resize: Annotated[float, Field(gt=0, le=MAX_SCALE)] = 2
    upscaling_resize_w: Pixels = 512
    upscaling_resize_h: Pixels = 512
    upscaling_crop: bool = True
    """In mode 1: cut to that size exactly."""
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: Visibility = 0
    upscale_first: bool = False

    def clashes(self) -> Iterator[SafelightError]:
        for name in ("gfpgan_visibility", "codeformer_visibility"):
            if getattr(self, name):
                yield UnsupportedOption(name, "no face restorer is installed here; leave it at 0")
        if self.extras_upscaler_2_visibility and self.upscaler_2 not in ("None", self.upscaler_1):
            reason = "two upscalers are not blended; leave extras_upscaler_2_visibility at 0"
            yield UnsupportedOption("upscaler_2", reason, "extras_upscaler_2_visibility", "upscaler_1")

    def method(self, upscalers: Upscalers) -> str:
        """Our name of the upscaling method; "None" leaves pictures unchanged.

        Raises:
            UnsupportedOption: the upscaler is not available.
        """
        methods = {
            name: method_for(name, getattr(self, name), upscalers)
            for name in ("upscaler_1", "upscaler_2")
            if getattr(self, name) != NONE
        }
        return methods.get("upscaler_1", LANCZOS)

    @property
    def field_names(self) -> Mapping[str, str]:
        """This body's names by the fields of an `Upscale`."""
        longer = "upscaling_resize_w" if self.upscaling_resize_w >= self.upscaling_resize_h else "upscaling_resize_h"
        return {"scale": longer if self.resize_mode else "upscaling_resize", "method": "upscaler_1"}

    def scale_for(self, width: int, height: int) -> float:
        """The scale for a picture of this size; 1 with the upscaler "None".

        Raises:
            InvalidField: the scale is above the maximum, or the result would be empty.
        """
        if self.upscaler_1 == "None":
            return 1.0
        scale = max(self.upscaling_resize_w / width, self.upscaling_resize_h / height)
        if self.resize_mode == 0:
            scale = self.upscaling_resize
        if scale > MAX_SCALE:
            limit = f"{width * MAX_SCALE}x{height * MAX_SCALE}"
            reason = f"a picture of {width}x{height} grows to {limit} at most, which is {MAX_SCALE} times as large"
            raise InvalidField(self.field_names["scale"], reason)
        if min(width, height) * scale < 1:
            raise InvalidField(
                self.field_names["scale"], f"a factor this small leaves nothing of a picture of {width}x{height}"
            )
        return scale

    @property
    def crops(self) -> bool:
        return self.upscaler_1 != "None" and self.resize_mode == 1 and self.upscaling_crop


class ExtrasSingle(UpscaleOptions):
    image: Encoded


class FileData(BaseModel):
    data: Encoded
    name: str


class ExtrasBatch(UpscaleOptions):
    imageList: Annotated[list[FileData], Field(min_length=1, max_length=MAX_PICTURES)]  # noqa: N815  their name


class ExtrasSingleAnswer(BaseModel):
    html_info: str
    image: str


class ExtrasBatchAnswer(BaseModel):
    html_info: str
    images: list[str]


class PngInfoBody(A1111Body):
    image: Encoded


class PngInfoAnswer(BaseModel):
    info: str
    """The infotext; for pictures by ComfyUI, InvokeAI and others, one made of their metadata."""
    items: dict[str, str]
    """The other texts in the file."""
    parameters: dict[str, Any]
    """The infotext in parts."""


class InterrogateBody(A1111Body):
    image: Encoded = ""
    model: str = "clip"


class InterrogateAnswer(BaseModel):
    caption: str


@dataclass(slots=True)
class StoredPicture:
    """An uploaded picture, stored."""

    digest: str
    scale: float
    upscaled: str | None = None
    """The id of the upscaled picture."""


@router.post("/extra-single-image")
async def extra_single_image(request: Request, caller: CurrentCaller, body: ExtrasSingle) -> ExtrasSingleAnswer:
    """Upscale a picture."""
    [image] = await upscale_pictures(request, caller, body, {"image": body.image})
    return ExtrasSingleAnswer(html_info=html_of(body), image=image)


@router.post("/extra-batch-images")
async def extra_batch_images(request: Request, caller: CurrentCaller, body: ExtrasBatch) -> ExtrasBatchAnswer:
    """Upscale several pictures."""
    sources = {f"imageList.{index}.data": file.data for index, file in enumerate(body.imageList)}
    images = await upscale_pictures(request, caller, body, sources)
    return ExtrasBatchAnswer(html_info=html_of(body), images=images)


@router.post("/png-info")
async def png_info(request: Request, caller: CurrentCaller, body: PngInfoBody) -> PngInfoAnswer:
    """Read how a picture was made from its metadata, whichever program wrote it."""
    limits = parts_of(request).settings
    with default_field("image"):
        data = await fetch_picture(body.image, max_bytes=limits.max_file_bytes)

    def read() -> PngInfoAnswer:
        metadata = read_metadata(data, max_pixels=limits.max_pixels, max_file_bytes=limits.max_file_bytes)
        infotext = infotext_of(metadata)
        parameters = parameters_of(infotext) if infotext else {}
        return PngInfoAnswer(info=infotext, items=items_of(metadata.raw), parameters=parameters)

    studio = parts_of(request).studio
    with default_field("image"):
        return await studio.image_pool.work(await studio.claim(data, tenant=caller.tenant), read)


@router.post("/interrogate")
async def interrogate(caller: CurrentCaller, body: InterrogateBody) -> InterrogateAnswer:
    """Always 404: no model that describes pictures is installed here."""
    raise UnknownModel(body.model, ["none, since image captioning is not supported"])


async def upscale_pictures(
    request: Request, caller: Caller, body: UpscaleOptions, sources: Mapping[str, str]
) -> list[str]:
    """Upscale the pictures, given by field, with a job for each that becomes larger; returns PNGs in base64."""
    parts = parts_of(request)
    studio = parts.studio
    method = body.method(studio.upscalers)
    caller.require("draw")
    # One at a time in memory: a small file can hold a very large picture.
    stored: list[StoredPicture] = []
    for field, source in sources.items():
        with default_field(field):
            data = await fetch_picture(source, max_bytes=parts.settings.max_file_bytes)
            turn = await studio.claim(data, tenant=caller.tenant)
            stored.append(await studio.image_pool.work(turn, store_picture, data, body, studio))
    larger = [picture for picture in stored if picture.scale > 1]
    upscales = [
        await asyncio.to_thread(resolve_upscale, picture.digest, picture.scale, method, studio) for picture in larger
    ]
    active_requests, submit_options = active_requests_of(request), SubmitOptions(uploaded=True)
    jobs: list[JobRow] = []
    if upscales:
        with rename_fields(body.field_names):
            jobs = await active_requests.run(
                request, upscales, caller, submit_options, job_service=parts.job_service, kind="extras"
            )
    for picture, job in zip(larger, jobs, strict=True):
        if job.asset_id is None:
            raise JobCancelled("interrupted before all pictures were upscaled")
        picture.upscaled = job.asset_id
    images: list[str] = []
    for picture in stored:
        turn = await studio.claim(picture.upscaled or picture.digest, tenant=caller.tenant)
        images.append(await studio.image_pool.work(turn, finish, picture, body, studio))
    return images


def store_picture(data: bytes, body: UpscaleOptions, studio: Studio) -> StoredPicture:
    digest = studio.keep(data)
    return StoredPicture(digest=digest, scale=body.scale_for(*studio.size_of(digest)))


def finish(stored: StoredPicture, body: UpscaleOptions, studio: Studio) -> str:
    if stored.upscaled and not body.crops:
        return base64.b64encode(studio.assets.read(stored.upscaled)).decode()
    image = studio.picture(stored.upscaled or stored.digest)
    if stored.scale < 1:
        image = upscale(image, stored.scale)
    if body.crops:
        width, height = body.upscaling_resize_w, body.upscaling_resize_h
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    actions = ("c2pa.resized.proportional",) * (stored.scale < 1) + ("c2pa.cropped",) * body.crops
    file = derive(stored.upscaled or stored.digest, image, studio, Encoding(), actions=actions)
    return base64.b64encode(file).decode()


def html_of(body: UpscaleOptions) -> str:
    return "" if body.upscaler_1 == "None" else f"<p>Postprocess upscaler: {body.upscaler_1}</p>"
