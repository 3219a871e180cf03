"""/sdapi/v1, the API of AUTOMATIC1111's web UI: pictures from words and from pictures, and how far they are.

    body -> drafts -> jobs -> pictures in base64

`a1111_payloads` says what each field means, `a1111_options` what a key has set, `a1111_sittings` who may stop what.
"""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel

from safelight.models.checkpoints.sizes import with_highres
from safelight.prompts.expand import expand_draft
from safelight.serving.a1111.info import info_of
from safelight.serving.a1111.options import Options, find_model, merged
from safelight.serving.a1111.payloads import (
    FAULTS,
    SETTINGS,
    WORDS,
    GenerationBody,
    ImageToImageBody,
    PicturesAnswer,
    TextToImageBody,
)
from safelight.serving.a1111.pictures import keep, keep_mask
from safelight.serving.a1111.progress import active_requests_of
from safelight.serving.a1111.sd_upscale import enlarged
from safelight.serving.a1111.units import led_by
from safelight.serving.http.auth import Who
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
from safelight.validation import concerning, in_words, together


async def in_their_words() -> AsyncGenerator[None, None]:
    with in_words(WORDS):
        yield


router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=FAULTS, dependencies=[Depends(in_their_words)])

BEGUN = 0.01
"""What `progress` says before the first step: 0 would mean that nothing is being drawn."""


class ProgressState(BaseModel):
    """In the words of AUTOMATIC1111: a job is a picture, all of whose steps are sampling steps."""

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
    """Of what the caller has under way; progress 0 and job_count 0 mean nothing."""

    progress: float
    eta_relative: float
    """Seconds until all of it is drawn."""
    state: ProgressState
    current_image: str | None = None
    """Base64 of a PNG: the estimate so far, small and in rough colours."""
    textinfo: str | None = None


@router.post("/txt2img")
async def txt2img(request: Request, caller: Who, body: TextToImageBody) -> PicturesAnswer:
    """Draw pictures from words."""
    options, refiner, led = await together(
        options_for(request, caller, body), refiner_for(request, body), led_by(request, caller, body)
    )
    fields = body.fields(options) | refiner | led
    first = await asyncio.to_thread(within_reach, parse_draft(fields), parts_of(request).studio)
    drafts = await asyncio.to_thread(several, first, body, parts_of(request).settings)
    return await drawn(request, caller, body, drafts, options=options, kind="txt2img")


@router.post("/img2img")
async def img2img(request: Request, caller: Who, body: ImageToImageBody) -> PicturesAnswer:
    """Draw pictures from pictures, or anew what a mask covers."""
    caller.require("draw")
    if len(body.init_images) > 1:
        body.batch_size = len(body.init_images)
    options, refiner, over = await together(
        options_for(request, caller, body), refiner_for(request, body), drawn_over(request, body)
    )
    fields = body.fields(options) | refiner | over
    found = await asyncio.to_thread(parts_of(request).studio.models.find, options.sd_model_checkpoint)
    if found.description.reads == "instructions":
        fields["image_guidance"] = body.image_cfg_scale
    studio, most = parts_of(request).studio, parts_of(request).settings.max_file_bytes
    marked = None
    if body.mask:
        with concerning("mask"):
            data = await fetch_picture(body.mask, max_bytes=most)
            turn = await studio.claim(data, tenant=caller.tenant)
            marked, fields["mask"] = await studio.image_pool.work(turn, keep_mask, data, studio)
    # One at a time in memory: a small file can hold a very large picture.
    inits: list[str] = []
    for place, source in enumerate(body.init_images):
        with concerning(f"init_images.{place}"):
            data = await fetch_picture(source, max_bytes=most)
            turn = await studio.claim(data, tenant=caller.tenant, copies=MANY_COPIES)
            inits.append(await studio.image_pool.work(turn, keep, data, marked, body, studio))
    leads = [await led_by(request, caller, body, init=init) for init in inits]
    firsts = [parse_draft(fields | {"init": init} | lead) for init, lead in zip(inits, leads, strict=True)]
    changing = [{name: getattr(one, name) for name in ("init", "controls", "picture_prompts")} for one in firsts]
    drafts = [
        draft.model_copy(update=changing[place % len(inits)])
        for place, draft in enumerate(await asyncio.to_thread(several, firsts[0], body, parts_of(request).settings))
    ]
    return await drawn(request, caller, body, drafts, options=options, kind="img2img")


@router.get("/progress")
async def progress(request: Request, caller: Who, skip_current_image: Annotated[bool, Query()] = False) -> ProgressView:
    """How far the caller's own pictures are."""
    found = await active_requests_of(request).progress(caller, parts_of(request).job_service)
    if found is None:
        return ProgressView(progress=0, eta_relative=0, state=ProgressState())
    state = ProgressState(
        skipped=found.sitting.skipped,
        interrupted=found.sitting.interrupted,
        job=found.sitting.kind,
        job_count=found.num_jobs,
        job_timestamp=time.strftime("%Y%m%d%H%M%S", time.localtime(found.sitting.began)),
        job_no=found.ended,
        sampling_step=found.step,
        sampling_steps=found.total_steps,
    )
    preview = None if skip_current_image else found.preview
    image = await asyncio.to_thread(as_base64, preview) if preview else None
    fraction = max(found.fraction, BEGUN)
    return ProgressView(progress=fraction, eta_relative=found.eta_s, state=state, current_image=image)


@router.post("/interrupt")
async def interrupt(request: Request, caller: Who) -> dict[str, str]:
    """Stop all that the caller has under way through this API; it is answered with what was finished."""
    await active_requests_of(request).interrupt(caller, parts_of(request).job_service)
    return {}


@router.post("/skip", responses=NULL)
async def skip(request: Request, caller: Who) -> None:
    """Stop the picture that `progress` shows."""
    await active_requests_of(request).skip(caller, parts_of(request).job_service)


def within_reach(draft: Draft, studio: Studio) -> Draft:
    """A size is what most of its clients can say, and 512x512 what they say unasked: where it is more than the model
    may be given at once, the picture is begun smaller."""
    about = studio.models.find(draft.model).description
    return with_highres(draft, about, above=studio.settings.max_native_areas)


def several(first: Draft, body: GenerationBody, settings: Settings) -> list[Draft]:
    """As many as the body asks for, with the choices in their prompts made where it asks for that."""
    return expand_draft(first, body.num_pictures, expand=body.expand, folder=settings.wildcards)


async def refiner_for(request: Request, body: GenerationBody) -> dict[str, Any]:
    """It is found as models are, by its title, its name or its hash."""
    if "refiner" not in body.refining():
        return {}
    with in_words({"model": "refiner"}):
        return {"refiner": await asyncio.to_thread(find_model, body.refiner_checkpoint, parts_of(request).studio)}


async def drawn_over(request: Request, body: ImageToImageBody) -> dict[str, Any]:
    """What the script SD upscale says."""
    if not body.drawn_over:
        return {}
    upscalers = parts_of(request).studio.upscalers
    return await asyncio.to_thread(enlarged, body.script_args, upscalers, width=body.width, height=body.height)


async def options_for(request: Request, caller: Caller, body: GenerationBody) -> Options:
    """The caller's options, and over them those of this request."""
    parts, sittings = parts_of(request), active_requests_of(request)
    stored = sittings.options_of(caller)
    with in_words({name: f"{SETTINGS}.{name}" for name in body.override_settings}):
        return await asyncio.to_thread(merged, stored, body.override_settings, parts.studio)


async def drawn(
    request: Request, caller: Caller, body: GenerationBody, drafts: Sequence[Draft], *, options: Options, kind: str
) -> PicturesAnswer:
    began = time.time()
    parts = parts_of(request)
    if body.override_settings and not body.override_settings_restore_afterwards:
        await active_requests_of(request).keep_options(caller, options, parts.keys)
    fields = SubmitOptions(encoding=options.encoding, brought=True)
    jobs = await active_requests_of(request).draw(
        request, drafts, caller, fields, job_service=parts.job_service, kind=kind
    )
    return await asyncio.to_thread(answer, jobs, body, parts.studio, began=began)


def answer(jobs: Sequence[JobRow], body: GenerationBody, studio: Studio, *, began: float) -> PicturesAnswer:
    done = [job for job in jobs if job.asset_id]
    asked, drawn = ([denoised(job) for job in some] for some in (jobs, done))
    images = files_of(done, studio) + hints_of(drawn, body, studio) if body.send_images else []
    hashes = studio.loras.hashes([lora for spec in drawn or asked for lora in spec.loras])
    info = info_of(asked, drawn, body, began=began, lora_hashes=hashes)
    parameters: dict[str, Any] = body.model_dump(mode="json")
    if isinstance(body, ImageToImageBody) and not body.include_init_images:
        parameters |= {"init_images": None, "mask": None}
    return PicturesAnswer(images=images, parameters=parameters, info=info)


def hints_of(drawn: Sequence[Denoised], body: GenerationBody, studio: Studio) -> list[str]:
    """What the nets were shown, after the pictures, as there."""
    if not drawn or not any(unit.save_detected_map for unit in body.units.values()):
        return []
    return [base64.b64encode(studio.assets.read(use.hint)).decode() for use in drawn[0].controls]


def files_of(jobs: Sequence[JobRow], studio: Studio) -> list[str]:
    """The finished pictures' files, in base64."""
    return [base64.b64encode(studio.assets.read(job.asset_id)).decode() for job in jobs if job.asset_id]


def denoised(job: JobRow) -> Denoised:
    spec = parse_spec(job.spec)
    assert not isinstance(spec, Upscale)
    return spec
