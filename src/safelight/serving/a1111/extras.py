"""/sdapi/v1, what is done with finished pictures: making them larger, and reading what they say of themselves."""

import asyncio
import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from safelight.assets.read_metadata import read_metadata
from safelight.errors import InvalidField, JobCancelled, SafelightError, UnknownModel, UnsupportedOption
from safelight.imaging.canvas import upscale
from safelight.models.vision.upscalers import LANCZOS, Upscalers
from safelight.resolve.resolve import resolve_upscale
from safelight.serving.a1111.body import RED_DOT, A1111Body
from safelight.serving.a1111.info import infotext_of, items_of, parameters_of
from safelight.serving.a1111.payloads import FAULTS
from safelight.serving.a1111.progress import active_requests_of
from safelight.serving.a1111.upscalers import NONE, ours_for
from safelight.serving.http.auth import Who
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.service import SubmitOptions
from safelight.serving.jobs.tables import JobRow
from safelight.serving.native.files import as_base64
from safelight.spec.fields import MAX_SCALE
from safelight.studio import Studio
from safelight.validation import concerning, in_words

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=FAULTS)

MAX_PICTURES = 100
Visibility = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]


Encoded = Annotated[str, Field(examples=[RED_DOT])]
"""A picture as base64, a data URL, or an address to fetch it from."""


class UpscaleOptions(A1111Body):
    """How a picture is made larger; the upscaler "None" leaves it as it is."""

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
            why = "two upscalers are not blended; leave extras_upscaler_2_visibility at 0"
            yield UnsupportedOption("upscaler_2", why, "extras_upscaler_2_visibility", "upscaler_1")

    def method(self, upscalers: Upscalers) -> str:
        """In our words; "None" leaves pictures as they are.

        Raises:
            UnsupportedOption: an upscaler that is not here.
        """
        methods = {
            name: ours_for(name, getattr(self, name), upscalers)
            for name in ("upscaler_1", "upscaler_2")
            if getattr(self, name) != NONE
        }
        return methods.get("upscaler_1", LANCZOS)

    @property
    def words(self) -> Mapping[str, str]:
        """Its own names for the fields of an upscale."""
        wider = "upscaling_resize_w" if self.upscaling_resize_w >= self.upscaling_resize_h else "upscaling_resize_h"
        return {"scale": wider if self.resize_mode else "upscaling_resize", "method": "upscaler_1"}

    def scale_for(self, width: int, height: int) -> float:
        """
        Raises:
            InvalidField: the picture would grow by more than is possible, or shrink to nothing.
        """
        if self.upscaler_1 == "None":
            return 1.0
        scale = max(self.upscaling_resize_w / width, self.upscaling_resize_h / height)
        if self.resize_mode == 0:
            scale = self.upscaling_resize
        if scale > MAX_SCALE:
            limit = f"{width * MAX_SCALE}x{height * MAX_SCALE}"
            why = f"a picture of {width}x{height} grows to {limit} at most, which is {MAX_SCALE} times as large"
            raise InvalidField(self.words["scale"], why)
        if min(width, height) * scale < 1:
            raise InvalidField(self.words["scale"], f"nothing would be left of a picture of {width}x{height}")
        return scale

    @property
    def cuts(self) -> bool:
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
    """The infotext; of pictures by ComfyUI, InvokeAI and others, one that says what theirs says."""
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
    """A picture that was sent, stored."""

    digest: str
    scale: float
    grown: str | None = None
    """The larger picture's id."""


@router.post("/extra-single-image")
async def extra_single_image(request: Request, caller: Who, body: ExtrasSingle) -> ExtrasSingleAnswer:
    """Make a picture larger."""
    [image] = await enlarged(request, caller, body, {"image": body.image})
    return ExtrasSingleAnswer(html_info=html_of(body), image=image)


@router.post("/extra-batch-images")
async def extra_batch_images(request: Request, caller: Who, body: ExtrasBatch) -> ExtrasBatchAnswer:
    """Make several pictures larger."""
    named = {f"imageList.{place}.data": file.data for place, file in enumerate(body.imageList)}
    images = await enlarged(request, caller, body, named)
    return ExtrasBatchAnswer(html_info=html_of(body), images=images)


@router.post("/png-info")
async def png_info(request: Request, caller: Who, body: PngInfoBody) -> PngInfoAnswer:
    """What a picture says of how it was made, whichever program made it."""
    limits = parts_of(request).settings
    with concerning("image"):
        data = await fetch_picture(body.image, max_bytes=limits.max_file_bytes)

    def read() -> PngInfoAnswer:
        metadata = read_metadata(data, max_pixels=limits.max_pixels, max_file_bytes=limits.max_file_bytes)
        infotext = infotext_of(metadata)
        parameters = parameters_of(infotext) if infotext else {}
        return PngInfoAnswer(info=infotext, items=items_of(metadata.raw), parameters=parameters)

    studio = parts_of(request).studio
    with concerning("image"):
        return await studio.image_pool.work(await studio.claim(data, tenant=caller.tenant), read)


@router.post("/interrogate")
async def interrogate(caller: Who, body: InterrogateBody) -> InterrogateAnswer:
    """Always 404: no model that describes pictures is installed here."""
    raise UnknownModel(body.model, ["none that describes pictures"])


async def enlarged(request: Request, caller: Caller, body: UpscaleOptions, sources: Mapping[str, str]) -> list[str]:
    """PNGs in base64 of pictures by their fields, by way of a job for each that grows."""
    parts = parts_of(request)
    studio = parts.studio
    method = body.method(studio.upscalers)
    caller.require("draw")
    # One at a time in memory: a small file can hold a very large picture.
    kept: list[StoredPicture] = []
    for field, source in sources.items():
        with concerning(field):
            data = await fetch_picture(source, max_bytes=parts.settings.max_file_bytes)
            turn = await studio.claim(data, tenant=caller.tenant)
            kept.append(await studio.image_pool.work(turn, keep, data, body, studio))
    grows = [one for one in kept if one.scale > 1]
    upscales = [await asyncio.to_thread(resolve_upscale, one.digest, one.scale, method, studio) for one in grows]
    sittings, fields = active_requests_of(request), SubmitOptions(brought=True)
    jobs: list[JobRow] = []
    if upscales:
        with in_words(body.words):
            jobs = await sittings.draw(request, upscales, caller, fields, job_service=parts.job_service, kind="extras")
    for one, job in zip(grows, jobs, strict=True):
        if job.asset_id is None:
            raise JobCancelled("interrupted before all pictures were made larger")
        one.grown = job.asset_id
    images: list[str] = []
    for one in kept:
        turn = await studio.claim(one.grown or one.digest, tenant=caller.tenant)
        images.append(await studio.image_pool.work(turn, finish, one, body, studio))
    return images


def keep(data: bytes, body: UpscaleOptions, studio: Studio) -> StoredPicture:
    digest = studio.keep(data)
    return StoredPicture(digest=digest, scale=body.scale_for(*studio.size_of(digest)))


def finish(kept: StoredPicture, body: UpscaleOptions, studio: Studio) -> str:
    if kept.grown and not body.cuts:
        return base64.b64encode(studio.assets.read(kept.grown)).decode()
    image = studio.picture(kept.grown or kept.digest)
    if kept.scale < 1:
        image = upscale(image, kept.scale)
    if body.cuts:
        width, height = body.upscaling_resize_w, body.upscaling_resize_h
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return as_base64(image)


def html_of(body: UpscaleOptions) -> str:
    return "" if body.upscaler_1 == "None" else f"<p>Postprocess upscaler: {body.upscaler_1}</p>"
