"""/sdapi/v1, the API of AUTOMATIC1111's web UI: txt2img, img2img and their progress.

    body -> drafts -> jobs -> pictures in base64

`txt2img` and `img2img` translate the bodies, `options` has a key's options, `progress` the active requests.
"""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel

from safelight.models.adapters.lora_hash import lora_hashes
from safelight.models.checkpoints.sizes import with_highres
from safelight.prompts.expand import expand_draft
from safelight.serving.a1111.answers import ERROR_RESPONSES, PicturesAnswer
from safelight.serving.a1111.control_fields import control_fields
from safelight.serving.a1111.generation_body import FIELD_NAMES, SETTINGS, GenerationBody
from safelight.serving.a1111.img2img import ImageToImageBody
from safelight.serving.a1111.info import info_of
from safelight.serving.a1111.options import Options, find_model, merge_options
from safelight.serving.a1111.pictures import store_init, store_mask
from safelight.serving.a1111.progress import active_requests_of
from safelight.serving.a1111.sd_upscale import upscale_fields
from safelight.serving.a1111.txt2img import TextToImageBody
from safelight.serving.http.auth import CurrentCaller
from safelight.serving.http.description import NULL
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.service import SubmitOptions
from safelight.serving.jobs.tables import JobRow
from safelight.serving.native.files import as_base64
from safelight.settings import Settings
from safelight.spec import Denoised, Draft, Upscale, parse_draft, parse_spec
from safelight.studio import MANY_COPIES, Studio
from safelight.validation import default_field, gather_all, rename_fields


async def use_a1111_names() -> AsyncGenerator[None, None]:
    with rename_fields(FIELD_NAMES):
        yield


router = APIRouter(
    prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=ERROR_RESPONSES, dependencies=[Depends(use_a1111_names)]
)

MIN_PROGRESS = 0.01
"""The progress before the first step: 0 would mean that no request is active."""


class ProgressState(BaseModel):
    """AUTOMATIC1111's state: a job is one picture, and all its steps are sampling steps."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressView(BaseModel):
    """The progress of the caller's active requests; progress 0 and job_count 0 mean that there are none."""

    progress: float
    eta_relative: float
    """Seconds until all pictures are finished."""
    state: ProgressState
    current_image: str | None = None
    """Base64 of a PNG: the estimate so far, small and in rough colours."""
    textinfo: str | None = None


@router.post("/txt2img")
async def txt2img(request: Request, caller: CurrentCaller, body: TextToImageBody) -> PicturesAnswer:
    """Generate pictures from a prompt."""
    options, refiner, control = await gather_all(
        options_for(request, caller, body), refiner_for(request, body), control_fields(request, caller, body)
    )
    fields = body.fields(options) | refiner | control
    first = await asyncio.to_thread(limit_first_pass, parse_draft(fields), parts_of(request).studio)
    drafts = await asyncio.to_thread(expand_drafts, first, body, parts_of(request).settings)
    return await generate_pictures(request, caller, body, drafts, options=options, kind="txt2img")


@router.post("/img2img")
async def img2img(request: Request, caller: CurrentCaller, body: ImageToImageBody) -> PicturesAnswer:
    """Generate pictures from pictures, or redraw what a mask covers."""
    caller.require("draw")
    if len(body.init_images) > 1:
        body.batch_size = len(body.init_images)
    options, refiner, upscale = await gather_all(
        options_for(request, caller, body), refiner_for(request, body), sd_upscale_fields(request, body)
    )
    fields = body.fields(options) | refiner | upscale
    found = await asyncio.to_thread(parts_of(request).studio.models.find, options.sd_model_checkpoint)
    if found.description.reads == "instructions":
        fields["image_guidance"] = body.image_cfg_scale
    studio, max_bytes = parts_of(request).studio, parts_of(request).settings.max_file_bytes
    mask = None
    if body.mask:
        with default_field("mask"):
            data = await fetch_picture(body.mask, max_bytes=max_bytes)
            turn = await studio.claim(data, tenant=caller.tenant)
            mask, fields["mask"] = await studio.image_pool.work(turn, store_mask, data, studio)
    # One at a time in memory: a small file can hold a very large picture.
    inits: list[str] = []
    for index, source in enumerate(body.init_images):
        with default_field(f"init_images.{index}"):
            data = await fetch_picture(source, max_bytes=max_bytes)
            turn = await studio.claim(data, tenant=caller.tenant, copies=MANY_COPIES)
            inits.append(await studio.image_pool.work(turn, store_init, data, mask, body, studio))
    control_by_init = [await control_fields(request, caller, body, init=init) for init in inits]
    firsts = [
        parse_draft(fields | {"init": init} | control) for init, control in zip(inits, control_by_init, strict=True)
    ]
    changes = [{name: getattr(draft, name) for name in ("init", "controls", "picture_prompts")} for draft in firsts]
    drafts = [
        draft.model_copy(update=changes[index % len(inits)])
        for index, draft in enumerate(
            await asyncio.to_thread(expand_drafts, firsts[0], body, parts_of(request).settings)
        )
    ]
    return await generate_pictures(request, caller, body, drafts, options=options, kind="img2img")


@router.get("/progress")
async def progress(
    request: Request, caller: CurrentCaller, skip_current_image: Annotated[bool, Query()] = False
) -> ProgressView:
    """The progress of the caller's own pictures."""
    found = await active_requests_of(request).progress(caller, parts_of(request).job_service)
    if found is None:
        return ProgressView(progress=0, eta_relative=0, state=ProgressState())
    state = ProgressState(
        skipped=found.active.skipped,
        interrupted=found.active.interrupted,
        job=found.active.kind,
        job_count=found.num_jobs,
        job_timestamp=time.strftime("%Y%m%d%H%M%S", time.localtime(found.active.began)),
        job_no=found.ended,
        sampling_step=found.step,
        sampling_steps=found.total_steps,
    )
    preview = None if skip_current_image else found.preview
    image = await asyncio.to_thread(as_base64, preview) if preview else None
    fraction = max(found.fraction, MIN_PROGRESS)
    return ProgressView(progress=fraction, eta_relative=found.eta_s, state=state, current_image=image)


@router.post("/interrupt")
async def interrupt(request: Request, caller: CurrentCaller) -> dict[str, str]:
    """Stop all of the caller's requests to this API; they are answered with the finished pictures."""
    await active_requests_of(request).interrupt(caller, parts_of(request).job_service)
    return {}


@router.post("/skip", responses=NULL)
async def skip(request: Request, caller: CurrentCaller) -> None:
    """Stop the picture that `progress` shows."""
    await active_requests_of(request).skip(caller, parts_of(request).job_service)


def limit_first_pass(draft: Draft, studio: Studio) -> Draft:
    """Make the first pass smaller if the size exceeds the model's largest area: clients always send a size, by default
    512x512, whatever the model."""
    description = studio.models.find(draft.model).description
    return with_highres(draft, description, above=studio.settings.max_native_areas)


def expand_drafts(first: Draft, body: GenerationBody, settings: Settings) -> list[Draft]:
    """A draft per requested picture, with the choices in their prompts expanded if requested."""
    return expand_draft(first, body.num_pictures, expand=body.expand, folder=settings.wildcards)


async def refiner_for(request: Request, body: GenerationBody) -> dict[str, Any]:
    """The draft field of the refiner, found like models by title, name or hash."""
    if "refiner" not in body.refiner_fields():
        return {}
    with rename_fields({"model": "refiner"}):
        return {"refiner": await asyncio.to_thread(find_model, body.refiner_checkpoint, parts_of(request).studio)}


async def sd_upscale_fields(request: Request, body: ImageToImageBody) -> dict[str, Any]:
    """The draft fields of the script SD upscale, if it is used."""
    if not body.uses_sd_upscale:
        return {}
    upscalers = parts_of(request).studio.upscalers
    return await asyncio.to_thread(upscale_fields, body.script_args, upscalers, width=body.width, height=body.height)


async def options_for(request: Request, caller: Caller, body: GenerationBody) -> Options:
    """The caller's options, overridden by those of this request."""
    parts, active_requests = parts_of(request), active_requests_of(request)
    stored = active_requests.options_of(caller)
    with rename_fields({name: f"{SETTINGS}.{name}" for name in body.override_settings}):
        return await asyncio.to_thread(merge_options, stored, body.override_settings, parts.studio)


async def generate_pictures(
    request: Request, caller: Caller, body: GenerationBody, drafts: Sequence[Draft], *, options: Options, kind: str
) -> PicturesAnswer:
    began = time.time()
    parts = parts_of(request)
    if body.override_settings and not body.override_settings_restore_afterwards:
        await active_requests_of(request).save_options(caller, options, parts.keys)
    submit_options = SubmitOptions(encoding=options.encoding, uploaded=True)
    jobs = await active_requests_of(request).run(
        request, drafts, caller, submit_options, job_service=parts.job_service, kind=kind
    )
    return await asyncio.to_thread(answer, jobs, body, parts.studio, began=began)


def answer(jobs: Sequence[JobRow], body: GenerationBody, studio: Studio, *, began: float) -> PicturesAnswer:
    done = [job for job in jobs if job.asset_id]
    requested, drawn = ([denoised(job) for job in group] for group in (jobs, done))
    images = files_of(done, studio) + hints_of(drawn, body, studio) if body.send_images else []
    hashes = lora_hashes([lora for spec in drawn or requested for lora in spec.loras], studio.models.catalogue)
    info = info_of(requested, drawn, body, began=began, lora_hashes=hashes)
    parameters: dict[str, Any] = body.model_dump(mode="json")
    if isinstance(body, ImageToImageBody) and not body.include_init_images:
        parameters |= {"init_images": None, "mask": None}
    return PicturesAnswer(images=images, parameters=parameters, info=info)


def hints_of(drawn: Sequence[Denoised], body: GenerationBody, studio: Studio) -> list[str]:
    """The control hints, which AUTOMATIC1111 too returns after the pictures."""
    if not drawn or not any(unit.save_detected_map for unit in body.units.values()):
        return []
    return [base64.b64encode(studio.assets.read(control.hint)).decode() for control in drawn[0].controls]


def files_of(jobs: Sequence[JobRow], studio: Studio) -> list[str]:
    """The files of the finished pictures, in base64."""
    return [base64.b64encode(studio.assets.read(job.asset_id)).decode() for job in jobs if job.asset_id]


def denoised(job: JobRow) -> Denoised:
    spec = parse_spec(job.spec)
    assert not isinstance(spec, Upscale)
    return spec
