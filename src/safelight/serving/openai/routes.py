"""/v1/images and /v1/models, as OpenAI's SDK and what is built on it speak them.

    body -> drafts -> jobs -> pictures in base64, or links to them

`openai_payloads` says what each field means, `openai_stream` tells partial images.
"""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response
from PIL import ImageChops
from pydantic import ValidationError
from starlette.datastructures import FormData

from safelight.errors import InvalidImage, UnknownModel
from safelight.faults import concerning, in_words, refuse
from safelight.models.checkpoints.families import Description
from safelight.prompts.several import expanded
from safelight.serving.http import description
from safelight.serving.http.attend import failure, stay
from safelight.serving.http.auth import Who
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.desk import Wishes
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.tables import JobRow
from safelight.serving.native.files import link
from safelight.serving.openai.payloads import (
    WORDS,
    EditMessage,
    EditRequest,
    GenerationMessage,
    GenerationRequest,
    ImageData,
    ImageRequest,
    ImagesAnswer,
    ModelList,
    ModelView,
    VariationRequest,
    model_of,
    usage_of,
)
from safelight.serving.openai.stream import stream
from safelight.spec import Draft, Reads
from safelight.studio import Studio


async def in_their_words() -> AsyncGenerator[None, None]:
    with in_words(WORDS):
        yield


router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(in_their_words)])

STRENGTHS = {"high": 0.5, "low": 0.75, None: 0.75}
"""By `input_fidelity`."""
MOST_IMAGES = 16
TOLD = "Pictures; or with `stream`, messages as they are drawn."
Body = TypeVar("Body", bound=ImageRequest)
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)]
RETRIES = "x-stainless-retry-count"
"""The SDK counts its tries in this header; it sends no idempotency key."""


@router.get("/models")
async def models(request: Request, caller: Who) -> ModelList:
    """The checkpoints that may be asked for by name."""
    names = await asyncio.to_thread(parts_of(request).studio.models.catalogue.names)
    return ModelList(data=[ModelView(id=name, created=0) for name in names])


@router.get("/models/{name}")
async def model(request: Request, caller: Who, name: str) -> ModelView:
    """One of them."""
    names = await asyncio.to_thread(parts_of(request).studio.models.catalogue.names)
    if name not in names:
        raise UnknownModel(name, names)
    return ModelView(id=name, created=0)


@router.post(
    "/images/generations",
    response_model=ImagesAnswer,
    responses=description.stream(GenerationMessage, TOLD),
)
async def generations(
    request: Request, caller: Who, body: GenerationRequest, idempotency_key: Key = None
) -> ImagesAnswer | Response:
    """Pictures from words."""
    about = await description_for(request, body)
    first = body.draft(about.defaults.steps)
    return await draw(request, caller, body, first, idempotency_key, kind="image_generation")


@router.post(
    "/images/edits",
    response_model=ImagesAnswer,
    responses=description.stream(EditMessage, TOLD),
    openapi_extra=description.form(EditRequest),
)
async def edits(request: Request, caller: Who, idempotency_key: Key = None) -> ImagesAnswer | Response:
    """A picture from words and a picture; where the mask is transparent, if there is one, it is drawn anew."""
    caller.require("draw")
    async with request.form(max_files=MOST_IMAGES + 1) as form:
        body = parsed(EditRequest, form)
        about = await description_for(request, body)
        given = await starts(parts_of(request).studio, body, about.reads)
    first = body.draft(about.defaults.steps, **given)
    return await draw(request, caller, body, first, idempotency_key, kind="image_edit")


@router.post(
    "/images/variations",
    response_model=ImagesAnswer,
    responses=description.stream(EditMessage, TOLD),
    openapi_extra=description.form(VariationRequest),
)
async def variations(request: Request, caller: Who, idempotency_key: Key = None) -> ImagesAnswer | Response:
    """A picture like another one; a `prompt` may help."""
    caller.require("draw")
    async with request.form(max_files=2) as form:
        body = parsed(VariationRequest, form)
        about = await description_for(request, body)
        given = await starts(parts_of(request).studio, body, about.reads)
    first = body.draft(about.defaults.steps, **given)
    return await draw(request, caller, body, first, idempotency_key, kind="image_edit")


async def draw(
    request: Request, caller: Caller, body: ImageRequest, first: Draft, idempotency_key: str | None, *, kind: str
) -> ImagesAnswer | Response:
    """Jobs, and their pictures once they are drawn.

    A client that goes away cancels them, unless it may come back for them: with its idempotency key, or as the SDK does
    after a lost connection.
    """
    parts = parts_of(request)
    wishes = Wishes(
        encoding=body.encoding(),
        idempotency_key=idempotency_key,
        said=body.model_dump_json() + str(first.init) + str(first.mask),
        retried=request.headers.get(RETRIES, "0") != "0",
    )
    drafts = await asyncio.to_thread(expanded, first, body.n or 1, expand=body.expand, folder=parts.settings.wildcards)
    jobs = await parts.desk.accept(drafts, caller, wishes)
    if body.stream:
        return stream(parts, body, jobs, kind=kind)
    returns = idempotency_key or RETRIES in request.headers
    ended = await (parts.desk.wait(jobs) if returns else stay(request, jobs, parts.desk))
    ended.sort(key=lambda job: job.place)
    for job in ended:
        if job.asset_id is None:
            raise failure(job)
    spec = ended[0].spec
    return ImagesAnswer(
        created=int(time.time()),
        data=[await data_of(request, job, as_url=body.as_url) for job in ended],
        output_format=body.output_format or "png",
        quality=body.quality or "auto",
        size=f"{spec['width']}x{spec['height']}",
        usage=usage_of(body.prompt, "init" in spec),
    )


async def data_of(request: Request, job: JobRow, *, as_url: bool) -> ImageData:
    assert job.asset_id
    seed = job.spec["seed"]
    if as_url:
        return ImageData(url=link(request, job), seed=seed)
    file = await asyncio.to_thread(parts_of(request).studio.assets.read, job.asset_id)
    return ImageData(b64_json=base64.b64encode(file).decode(), seed=seed)


async def description_for(request: Request, body: ImageRequest) -> Description:
    found = await asyncio.to_thread(parts_of(request).studio.models.find, model_of(body.model))
    return found.description


def parsed(kind: type[Body], form: FormData) -> Body:
    """Scalars of a form arrive as strings; an empty one was not given."""
    values = {name.removesuffix("[]"): value for name, value in reversed(form.multi_items()) if value != ""}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        refuse(error)


async def starts(studio: Studio, body: VariationRequest, reads: Reads) -> dict[str, Any]:
    """The fields of a draft that say what it starts from; a model that sees the picture needs not start near it."""
    strength = body.strength or (STRENGTHS[body.input_fidelity] if reads == "words" else None)
    with concerning("image"):
        init = await asyncio.to_thread(studio.keep, await body.image.read())
    if not isinstance(body, EditRequest) or body.mask is None:
        return {"init": init, "strength": strength}
    with concerning("mask"):
        mask = await asyncio.to_thread(keep_mask, studio, await body.mask.read())
    return {"init": init, "mask": mask, "strength": body.strength or 1.0}


def keep_mask(studio: Studio, data: bytes) -> str:
    """OpenAI's mask is transparent where the picture is drawn anew; ours is white there."""
    alpha = studio.open(data, mode="RGBA").getchannel("A")
    if alpha.getextrema()[0] == 255:
        raise InvalidImage("mask: a PNG with transparency is needed; what is transparent is drawn anew")
    return studio.keep(ImageChops.invert(alpha), mode="L")
