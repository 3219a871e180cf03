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
from safelight.models.checkpoints.families import Description, describe
from safelight.models.checkpoints.sizes import good_sizes, with_highres
from safelight.prompts.expand import expand_draft
from safelight.serving.http import description
from safelight.serving.http.auth import Who
from safelight.serving.http.parts import parts_of
from safelight.serving.http.plain import require_plain_values
from safelight.serving.http.wait_or_cancel import failure, wait_or_cancel
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.service import SubmitOptions
from safelight.serving.jobs.tables import JobRow
from safelight.serving.native.files import link
from safelight.serving.openai.bodies import (
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
    final_sides,
    model_of,
    pairs_in,
    usage_of,
)
from safelight.serving.openai.image_stream import stream
from safelight.spec import Draft
from safelight.spec.fields import Reads
from safelight.studio import Studio
from safelight.validation import concerning, in_words, refuse


async def in_their_words() -> AsyncGenerator[None, None]:
    with in_words(WORDS):
        yield


router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(in_their_words)])

STRENGTHS = {"high": 0.5, "low": 0.75, None: 0.75}
"""By `input_fidelity`."""
MAX_IMAGES = 16
TOLD = "Pictures; or with `stream`, messages as they are drawn."
Body = TypeVar("Body", bound=ImageRequest)
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)]
RETRIES = "x-stainless-retry-count"
"""The SDK counts its tries in this header; it sends no idempotency key."""


@router.get("/models")
async def models(request: Request, caller: Who) -> ModelList:
    """The checkpoints that may be asked for by name, and the names of OpenAI's that the operator gave them."""
    parts = parts_of(request)
    names = await asyncio.to_thread(parts.studio.models.catalogue.names)
    theirs = {theirs: ours for theirs, ours in pairs_in(parts.settings.openai_models) if "*" not in theirs}
    views = [ModelView(id=name, created=0, root=name) for name in names if name not in theirs]
    return ModelList(data=[*views, *(ModelView(id=name, created=0, root=ours) for name, ours in theirs.items())])


@router.get("/models/{name}")
async def model(request: Request, caller: Who, name: str) -> ModelView:
    """One of them, with the sizes that it draws well."""
    parts = parts_of(request)
    catalogue = parts.studio.models.catalogue
    ours, names = model_of(name, parts.settings.openai_models), await asyncio.to_thread(catalogue.names)
    if ours not in names:
        raise UnknownModel(name, names)
    about = await asyncio.to_thread(lambda: describe(catalogue.find(ours)))
    return ModelView(id=name, created=0, root=ours, sizes=good_sizes(about))


@router.post(
    "/images/generations",
    response_model=ImagesAnswer,
    responses=description.stream(GenerationMessage, TOLD),
)
async def generations(
    request: Request, caller: Who, body: GenerationRequest, idempotency_key: Key = None
) -> ImagesAnswer | Response:
    """Pictures from words."""
    model, about = await model_for(request, body)
    first = with_highres(body.draft(about.defaults.steps, model=model), about)
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
    async with request.form(max_files=MAX_IMAGES + 1) as form:
        body = parsed(EditRequest, form)
        model, about = await model_for(request, body)
        given = await starts(parts_of(request).studio, body, about.reads, caller)
    first = body.draft(about.defaults.steps, model=model, **given)
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
        model, about = await model_for(request, body)
        given = await starts(parts_of(request).studio, body, about.reads, caller)
    first = body.draft(about.defaults.steps, model=model, **given)
    return await draw(request, caller, body, first, idempotency_key, kind="image_edit")


async def draw(
    request: Request, caller: Caller, body: ImageRequest, first: Draft, idempotency_key: str | None, *, kind: str
) -> ImagesAnswer | Response:
    """Jobs, and their pictures once they are drawn.

    A client that goes away cancels them, unless it may come back for them: with its idempotency key, or as the SDK does
    after a lost connection.
    """
    parts = parts_of(request)
    submit_options = SubmitOptions(
        brought=True,
        encoding=body.encoding(),
        idempotency_key=idempotency_key,
        said=body.model_dump_json() + str(first.init) + str(first.mask),
        retried=request.headers.get(RETRIES, "0") != "0",
    )
    drafts = await asyncio.to_thread(
        expand_draft, first, body.n or 1, expand=body.expand, folder=parts.settings.wildcards
    )
    jobs = await parts.job_service.accept(drafts, caller, submit_options)
    if body.stream:
        # The SDK tries again only what was not answered at all.
        return stream(parts, body, jobs, kind=kind, returns=idempotency_key is not None)
    returns = idempotency_key or RETRIES in request.headers
    ended = await (parts.job_service.wait(jobs) if returns else wait_or_cancel(request, jobs, parts.job_service))
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
        size="{}x{}".format(*final_sides(spec)),
        usage=usage_of(body.prompt, "init" in spec),
    )


async def data_of(request: Request, job: JobRow, *, as_url: bool) -> ImageData:
    assert job.asset_id
    seed = job.spec["seed"]
    if as_url:
        return ImageData(url=link(request, job), seed=seed)
    file = await asyncio.to_thread(parts_of(request).studio.assets.read, job.asset_id)
    return ImageData(b64_json=base64.b64encode(file).decode(), seed=seed)


async def model_for(request: Request, body: ImageRequest) -> tuple[str, Description]:
    """Its name here, and what it says of itself."""
    parts = parts_of(request)
    name = model_of(body.model, parts.settings.openai_models)
    found = await asyncio.to_thread(parts.studio.models.find, name)
    return name, found.description


def parsed(kind: type[Body], form: FormData) -> Body:
    """Scalars of a form arrive as strings; an empty one was not given."""
    values = {name.removesuffix("[]"): value for name, value in reversed(form.multi_items()) if value != ""}
    require_plain_values(values, "body")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        refuse(error)


async def starts(studio: Studio, body: VariationRequest, reads: Reads, caller: Caller) -> dict[str, Any]:
    """The fields of a draft that say what it starts from; a model that sees the picture needs not start near it."""
    strength = body.strength or (STRENGTHS[body.input_fidelity] if reads == "words" else None)
    with concerning("image"):
        init = await studio.take(await body.image.read(), tenant=caller.tenant)
    if not isinstance(body, EditRequest) or body.mask is None:
        return {"init": init, "strength": strength}
    with concerning("mask"):
        data = await body.mask.read()
        turn = await studio.claim(data, tenant=caller.tenant)
        mask = await studio.image_pool.work(turn, keep_mask, studio, data)
    return {"init": init, "mask": mask, "strength": body.strength or 1.0}


def keep_mask(studio: Studio, data: bytes) -> str:
    """OpenAI's mask is transparent where the picture is drawn anew; ours is white there."""
    alpha = studio.open(data, mode="RGBA").getchannel("A")
    if alpha.getextrema()[0] == 255:
        raise InvalidImage("mask: a PNG with transparency is needed; what is transparent is drawn anew")
    return studio.keep(ImageChops.invert(alpha), mode="L")
