"""/v1/images and /v1/models, for OpenAI's SDK and clients built on it.

    body -> drafts -> jobs -> pictures in base64, or links to them

`bodies` translates the fields, `image_stream` streams partial images.
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
from safelight.serving.http.auth import CurrentCaller
from safelight.serving.http.parts import parts_of
from safelight.serving.http.plain import require_plain_values
from safelight.serving.http.wait_or_cancel import failure, wait_or_cancel
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.service import SubmitOptions
from safelight.serving.jobs.tables import JobRow
from safelight.serving.native.files import link
from safelight.serving.openai.bodies import (
    FIELD_NAMES,
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
    parse_model_names,
    usage_of,
)
from safelight.serving.openai.image_stream import stream
from safelight.spec import Draft
from safelight.spec.fields import Reads
from safelight.studio import Studio
from safelight.validation import default_field, refuse, rename_fields


async def use_openai_names() -> AsyncGenerator[None, None]:
    with rename_fields(FIELD_NAMES):
        yield


router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(use_openai_names)])

STRENGTHS = {"high": 0.5, "low": 0.75, None: 0.75}
"""Strength by `input_fidelity`."""
MAX_IMAGES = 16
STREAM_DESCRIPTION = "Pictures; or with `stream`, messages while they are generated."
Body = TypeVar("Body", bound=ImageRequest)
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)]
RETRIES = "x-stainless-retry-count"
"""The SDK's header with its number of retries; it sends no idempotency key."""


@router.get("/models")
async def models(request: Request, caller: CurrentCaller) -> ModelList:
    """List the checkpoints by name, and the OpenAI names that the operator mapped to them."""
    parts = parts_of(request)
    names = await asyncio.to_thread(parts.studio.models.catalogue.names)
    theirs = {theirs: ours for theirs, ours in parse_model_names(parts.settings.openai_models) if "*" not in theirs}
    views = [ModelView(id=name, created=0, root=name) for name in names if name not in theirs]
    return ModelList(data=[*views, *(ModelView(id=name, created=0, root=ours) for name, ours in theirs.items())])


@router.get("/models/{name}")
async def model(request: Request, caller: CurrentCaller, name: str) -> ModelView:
    """Return one model by name, with the sizes that it draws well."""
    parts = parts_of(request)
    catalogue = parts.studio.models.catalogue
    ours, names = model_of(name, parts.settings.openai_models), await asyncio.to_thread(catalogue.names)
    if ours not in names:
        raise UnknownModel(name, names)
    model_description = await asyncio.to_thread(lambda: describe(catalogue.find(ours)))
    return ModelView(id=name, created=0, root=ours, sizes=good_sizes(model_description))


@router.post(
    "/images/generations",
    response_model=ImagesAnswer,
    responses=description.stream(GenerationMessage, STREAM_DESCRIPTION),
)
async def generations(
    request: Request, caller: CurrentCaller, body: GenerationRequest, idempotency_key: Key = None
) -> ImagesAnswer | Response:
    """Generate pictures from a prompt."""
    model, model_description = await model_for(request, body)
    first = with_highres(body.draft(model_description.defaults.steps, model=model), model_description)
    return await generate_pictures(request, caller, body, first, idempotency_key, kind="image_generation")


@router.post(
    "/images/edits",
    response_model=ImagesAnswer,
    responses=description.stream(EditMessage, STREAM_DESCRIPTION),
    openapi_extra=description.form(EditRequest),
)
async def edits(request: Request, caller: CurrentCaller, idempotency_key: Key = None) -> ImagesAnswer | Response:
    """Edit a picture by a prompt; with a mask, redraw its transparent areas."""
    caller.require("draw")
    async with request.form(max_files=MAX_IMAGES + 1) as form:
        body = parse_form(EditRequest, form)
        model, model_description = await model_for(request, body)
        given = await init_fields(parts_of(request).studio, body, model_description.reads, caller)
    first = body.draft(model_description.defaults.steps, model=model, **given)
    return await generate_pictures(request, caller, body, first, idempotency_key, kind="image_edit")


@router.post(
    "/images/variations",
    response_model=ImagesAnswer,
    responses=description.stream(EditMessage, STREAM_DESCRIPTION),
    openapi_extra=description.form(VariationRequest),
)
async def variations(request: Request, caller: CurrentCaller, idempotency_key: Key = None) -> ImagesAnswer | Response:
    """Generate variations of a picture; a `prompt` may help."""
    caller.require("draw")
    async with request.form(max_files=2) as form:
        body = parse_form(VariationRequest, form)
        model, model_description = await model_for(request, body)
        given = await init_fields(parts_of(request).studio, body, model_description.reads, caller)
    first = body.draft(model_description.defaults.steps, model=model, **given)
    return await generate_pictures(request, caller, body, first, idempotency_key, kind="image_edit")


async def generate_pictures(
    request: Request, caller: Caller, body: ImageRequest, first: Draft, idempotency_key: str | None, *, kind: str
) -> ImagesAnswer | Response:
    """Accept jobs and answer with their pictures.

    If the client disconnects, they are cancelled, unless it may come back for them: with its idempotency key, or as the
    SDK does after a lost connection.
    """
    parts = parts_of(request)
    submit_options = SubmitOptions(
        uploaded=True,
        encoding=body.encoding(),
        idempotency_key=idempotency_key,
        original_request=body.model_dump_json() + str(first.init) + str(first.mask),
        retried=request.headers.get(RETRIES, "0") != "0",
    )
    drafts = await asyncio.to_thread(
        expand_draft, first, body.n or 1, expand=body.expand, folder=parts.settings.wildcards
    )
    jobs = await parts.job_service.accept(drafts, caller, submit_options)
    if body.stream:
        # The SDK retries only requests without any answer.
        return stream(parts, body, jobs, kind=kind, resumable=idempotency_key is not None)
    resumable = idempotency_key or RETRIES in request.headers
    ended = await (parts.job_service.wait(jobs) if resumable else wait_or_cancel(request, jobs, parts.job_service))
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
    """The name and description of our model for this request."""
    parts = parts_of(request)
    name = model_of(body.model, parts.settings.openai_models)
    found = await asyncio.to_thread(parts.studio.models.find, name)
    return name, found.description


def parse_form(kind: type[Body], form: FormData) -> Body:
    """Validate a form as `kind`: scalars arrive as strings, and empty ones count as not given."""
    values = {name.removesuffix("[]"): value for name, value in reversed(form.multi_items()) if value != ""}
    require_plain_values(values, "body")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        refuse(error)


async def init_fields(studio: Studio, body: VariationRequest, reads: Reads, caller: Caller) -> dict[str, Any]:
    """Store the form's pictures; returns the draft's init, mask and strength. A model that follows instructions sees
    the init picture itself, so its strength has no default."""
    strength = body.strength or (STRENGTHS[body.input_fidelity] if reads == "words" else None)
    with default_field("image"):
        init = await studio.take(await body.image.read(), tenant=caller.tenant)
    if not isinstance(body, EditRequest) or body.mask is None:
        return {"init": init, "strength": strength}
    with default_field("mask"):
        data = await body.mask.read()
        turn = await studio.claim(data, tenant=caller.tenant)
        mask = await studio.image_pool.work(turn, store_mask, studio, data)
    return {"init": init, "mask": mask, "strength": body.strength or 1.0}


def store_mask(studio: Studio, data: bytes) -> str:
    """Store a mask and return its digest: OpenAI's is transparent in the areas to redraw, ours is white."""
    alpha = studio.open(data, mode="RGBA").getchannel("A")
    if alpha.getextrema()[0] == 255:
        raise InvalidImage("mask: a PNG with transparency is required; its transparent areas are redrawn")
    return studio.keep(ImageChops.invert(alpha), mode="L")
