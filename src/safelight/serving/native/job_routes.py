"""/v1/jobs: our own API. Accepted jobs are durable and independent of the client's connection."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, WrapValidator
from sse_starlette import EventSourceResponse, ServerSentEvent

from safelight.assets.encode import Detail, Encoding, Format
from safelight.errors import InvalidRequest, UnknownJob
from safelight.events import Event, Previewed, Stepped
from safelight.lifecycle.training.recipe import RecipeByKind
from safelight.prompts.expand import Expand, expand_draft
from safelight.serving.http.auth import CurrentCaller
from safelight.serving.http.description import stream
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.service import JobService, SubmitOptions
from safelight.serving.jobs.tables import ENDED, EventRow, JobRow
from safelight.serving.native.events import JobMessage
from safelight.serving.native.files import as_base64, link
from safelight.spec import Draft
from safelight.validation import CheckedModel, without_tags

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_IN_A_LIST = 1000
State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]


class JobRequest(Draft):
    """A requested picture; only `prompt` is required."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "a red apple", "seed": 7}, {"prompt": "a blue car", "steps": 30}]}
    )
    output_format: Format = "png"
    output_compression: Annotated[int, Field(ge=1, le=100)] = 90
    """Quality of JPEG, WebP and AVIF."""
    metadata: Detail = "full"
    """Metadata in the file; `minimal` omits the prompt."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    expires_in_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    """A job that has not started by then never does."""
    webhook_url: Annotated[str, Field(max_length=2048)] | None = None
    """Receives a signed POST when the job has ended."""
    expand: Expand | None = None
    """Expand choices in the prompts, `{red|blue}` and `__colour__`: `wildcards` picks them by the seed, `combinatorial`
    makes a picture of each combination, and answers with a list."""

    def drafts(self, folder: Path) -> list[Draft]:
        draft = Draft.model_validate(self.model_dump(include=set(Draft.model_fields)))
        return [draft] if self.expand is None else expand_draft(draft, 1, expand=self.expand, folder=folder)

    def submit_options(self, idempotency_key: str | None) -> SubmitOptions:
        return SubmitOptions(
            encoding=Encoding(format=self.output_format, quality=self.output_compression, metadata=self.metadata),
            priority=self.priority,
            idempotency_key=idempotency_key,
            expires_in_s=self.expires_in_s,
            webhook_url=self.webhook_url,
        )


class TrainingRequest(CheckedModel):
    """A requested training run: the recipe of `safelight train`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"kind": "training", "recipe": {"kind": "lora", "name": "my-icons",
                                                                        "data": "/data/my-icons", "steps": 300}}]},
    )  # fmt: skip
    kind: Literal["training"]
    recipe: RecipeByKind
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    expires_in_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    webhook_url: Annotated[str, Field(max_length=2048)] | None = None

    def submit_options(self, idempotency_key: str | None) -> SubmitOptions:
        return SubmitOptions(
            priority=self.priority,
            idempotency_key=idempotency_key,
            expires_in_s=self.expires_in_s,
            webhook_url=self.webhook_url,
        )


class JobError(BaseModel):
    code: str
    message: str


class JobView(BaseModel):
    """A job as callers see it."""

    id: str
    object: Literal["job"] = "job"
    state: State
    request: str
    """An id shared by all jobs of one POST."""
    created: float
    """Seconds since the epoch, as are `started`, `finished` and `expires`."""
    started: float | None
    finished: float | None
    expires: float | None
    position: int | None = None
    """Number of jobs before it in the queue; only while it is queued."""
    step: int
    total_steps: int
    attempts: int
    priority: int
    spec: dict[str, Any]
    asset_id: str | None
    url: str | None
    """Link to the picture, valid for an hour."""
    error: JobError | None
    seconds: float | None
    compute_s: float | None


class JobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobView]
    has_more: bool = False


Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)]


def kind_of(body: Any) -> str:
    if isinstance(body, list):
        return "pictures"
    return "training" if isinstance(body, dict) and "kind" in body else "picture"


JobBody = Annotated[
    Annotated[JobRequest, Tag("picture")]
    | Annotated[list[JobRequest], Tag("pictures")]
    | Annotated[TrainingRequest, Tag("training")],
    Discriminator(kind_of),
    WrapValidator(without_tags),
    Body(),
]


@router.post("", status_code=202)
async def create(
    request: Request, caller: CurrentCaller, body: JobBody, idempotency_key: Key = None
) -> JobView | JobList:
    """Accept a picture, all of a list of pictures, or a training run; a retry with the same `Idempotency-Key` gets the
    same jobs."""
    job_service = parts_of(request).job_service
    if isinstance(body, TrainingRequest):
        return await view(
            request, await job_service.accept_training(body.recipe, caller, body.submit_options(idempotency_key))
        )
    requests = body if isinstance(body, list) else [body]
    if not 1 <= len(requests) <= MAX_IN_A_LIST:
        raise InvalidRequest(f"a list holds 1 to {MAX_IN_A_LIST} pictures, not {len(requests)}")
    submit_options = requests[0].submit_options(idempotency_key)
    expanding = any(item.expand for item in requests)
    if any(other.submit_options(idempotency_key) != submit_options for other in requests):
        raise InvalidRequest("output_format, metadata, priority, expires_in_s and webhook_url must be equal in a list")
    drafts = await asyncio.to_thread(drafts_of, requests, job_service.studio.settings.wildcards)
    if expanding:
        # Choices depend on seeds that may be random, so a retry is recognised by the request itself.
        submit_options = replace(
            submit_options, original_request=json.dumps([item.model_dump(mode="json") for item in requests])
        )
    jobs = await job_service.accept(drafts, caller, submit_options)
    views = [await view(request, job) for job in jobs]
    return JobList(data=views) if isinstance(body, list) or body.expand == "combinatorial" else views[0]


def drafts_of(requests: Sequence[JobRequest], folder: Path) -> list[Draft]:
    drafts = [draft for item in requests for draft in item.drafts(folder)]
    if len(drafts) > MAX_IN_A_LIST:
        raise InvalidRequest(f"the request expands to {len(drafts)} pictures; at most {MAX_IN_A_LIST} are allowed")
    return drafts


@router.get("")
async def index(
    request: Request,
    caller: CurrentCaller,
    state: State | None = None,
    before: Annotated[str | None, Query(description="The last id of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobList:
    """The caller's jobs, newest first."""
    queue = parts_of(request).job_service.queue
    jobs = await queue.database.run(queue.find, tenant=caller.sees, state=state, before=before, limit=limit + 1)
    return JobList(data=[await view(request, job) for job in jobs[:limit]], has_more=len(jobs) > limit)


@router.get("/{job_id}")
async def show(request: Request, caller: CurrentCaller, job_id: str) -> JobView:
    """The current state of a job."""
    return await view(request, await get_own_job(request, caller, job_id))


@router.get("/{job_id}/wait")
async def wait(
    request: Request, caller: CurrentCaller, job_id: str, timeout_s: Annotated[float, Query(ge=0, le=600)] = 60
) -> JobView:
    """Wait until the job has ended, or for `timeout_s`; answers its current state."""
    job = await get_own_job(request, caller, job_id)
    [latest] = await parts_of(request).job_service.wait([job], timeout_s=timeout_s)
    return await view(request, latest)


@router.post("/{job_id}/cancel")
async def cancel(request: Request, caller: CurrentCaller, job_id: str) -> JobView:
    """Cancel a job: a running one stops at its next step, one that has ended does not change."""
    job = await get_own_job(request, caller, job_id)
    return await view(request, await parts_of(request).job_service.cancel(job))


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    responses=stream(JobMessage, "Messages until the job has ended."),
)
async def events(
    request: Request,
    caller: CurrentCaller,
    job_id: str,
    last_event_id: Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = 0,
) -> EventSourceResponse:
    """Server-sent events until the job has ended. Those with an id are stored: `Last-Event-ID` resumes after one. Steps
    and previews have no id and are only sent live."""
    job = await get_own_job(request, caller, job_id)
    return EventSourceResponse(stream_events(parts_of(request).job_service, job, last_event_id), ping=15)


async def stream_events(job_service: JobService, job: JobRow, after: int) -> AsyncGenerator[ServerSentEvent, None]:
    for row in await job_service.queue.database.run(job_service.queue.events, job.id, after=after):
        after = row.number
        yield stored_event(row)
    async for _, item in job_service.follow([job]):
        for row in await job_service.queue.database.run(job_service.queue.events, job.id, after=after):
            after = row.number
            yield stored_event(row)
        if not isinstance(item, JobRow) and (live := await asyncio.to_thread(live_event, item)):
            yield live


def stored_event(row: EventRow) -> ServerSentEvent:
    data = {"job_id": row.job_id, "at": row.at, **row.data}
    return ServerSentEvent(json.dumps(data), event=row.kind, id=str(row.number))


def live_event(event: Event) -> ServerSentEvent | None:
    match event:
        case Stepped(step=step, total_steps=total_steps):
            return ServerSentEvent(json.dumps({"step": step, "total_steps": total_steps}), event="step")
        case Previewed(step=step, image=image):
            return ServerSentEvent(json.dumps({"step": step, "b64_png": as_base64(image)}), event="preview")
        case _:
            return None


async def get_own_job(request: Request, caller: CurrentCaller, job_id: str) -> JobRow:
    if len(job_id) != 32:
        raise UnknownJob(f"no job {job_id!r}; an id is the 32 hex digits from the answer of POST /v1/jobs")
    queue = parts_of(request).job_service.queue
    return await queue.database.run(queue.get, job_id, tenant=caller.sees)


async def view(request: Request, job: JobRow) -> JobView:
    parts = parts_of(request)
    queued = job.state == "queued"
    step, total_steps = parts.job_service.live.progress.get(job.id, (job.step, job.total_steps))
    return JobView(
        id=job.id,
        state=job.state,  # pyright: ignore[reportArgumentType]
        request=job.request,
        created=job.created,
        started=job.started,
        finished=job.finished,
        expires=job.expires,
        position=await parts.database.run(parts.job_service.queue.position, job) if queued else None,
        step=total_steps if job.state == "done" else step,
        total_steps=total_steps,
        attempts=job.attempts,
        priority=job.priority,
        spec=job.spec,
        asset_id=job.asset_id,
        url=link(request, job) if job.asset_id else None,
        error=JobError(**{name: job.error[name] for name in ("code", "message")}) if job.error else None,
        seconds=job.seconds if job.state in ENDED else None,
        compute_s=job.compute_s if job.state in ENDED else None,
    )
