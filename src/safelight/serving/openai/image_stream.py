"""Streams partial images, as the events that OpenAI's SDK reads.

image_generation.partial_image * image_generation.completed     (image_edit.* for edits)
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi.responses import Response
from PIL import Image
from sse_starlette import EventSourceResponse, ServerSentEvent

from safelight.events import Previewed
from safelight.serving.http.errors import body as error_body
from safelight.serving.http.parts import Parts
from safelight.serving.http.wait_or_cancel import failure
from safelight.serving.jobs.tables import ENDED, JobRow
from safelight.serving.native.files import as_base64
from safelight.serving.openai.bodies import ImageRequest, final_sides, usage_of

PREVIEW_COPIES = 64
"""Pixels of the picture per pixel of a preview."""


def stream(parts: Parts, body: ImageRequest, jobs: Sequence[JobRow], *, kind: str, resumable: bool) -> Response:
    """Stream the jobs' events; `resumable`: a client that disconnects may come back for its pictures."""
    return EventSourceResponse(stream_events(parts, body, jobs, kind=kind, resumable=resumable), ping=15)


async def stream_events(
    parts: Parts, body: ImageRequest, jobs: Sequence[JobRow], *, kind: str, resumable: bool
) -> AsyncGenerator[ServerSentEvent, None]:
    """Yield the events. Closed at a disconnect or when the server stops; if not resumable, jobs are then cancelled."""
    num_sent: dict[str, int] = {job.id: 0 for job in jobs}
    limit = body.partial_images or 0
    open_jobs = {job.id: job for job in jobs}
    try:
        async for job_id, item in parts.job_service.follow(jobs):
            match item:
                case Previewed(step=step, image=image) if num_sent[job_id] < limit and due(
                    step, num_sent[job_id], limit, open_jobs[job_id]
                ):
                    spec = open_jobs[job_id].spec
                    turn = await parts.studio.claim(image, tenant=jobs[0].tenant, copies=PREVIEW_COPIES, accepted=True)
                    encoded = await parts.studio.image_pool.work(turn, enlarge_preview, image, final_sides(spec))
                    fields = {"partial_image_index": num_sent[job_id]}
                    num_sent[job_id] += 1
                    yield event(f"{kind}.partial_image", encoded, body, spec, fields)
                case JobRow() as job:
                    del open_jobs[job_id]
                    if job.asset_id is None:
                        error = failure(job)
                        yield ServerSentEvent(json.dumps(error_body("/v1/images", error, str(error))), event="error")
                        return
                    file = await asyncio.to_thread(parts.studio.assets.read, job.asset_id)
                    usage = usage_of(body.prompt, "init" in job.spec).model_dump()
                    encoded = base64.b64encode(file).decode()
                    yield event(f"{kind}.completed", encoded, body, job.spec, {"usage": usage})
                case _:
                    pass
    finally:
        unfinished = [] if resumable else [job for job in open_jobs.values() if job.state not in ENDED]
        await asyncio.shield(asyncio.gather(*(parts.job_service.cancel(job) for job in unfinished)))


def enlarge_preview(image: Image.Image, size: tuple[int, int]) -> str:
    """Resize a preview to the size of the picture; a PNG in base64."""
    return as_base64(image.resize(size, Image.Resampling.BICUBIC))


def due(step: int, num_sent: int, limit: int, job: JobRow) -> bool:
    """Whether the next partial image is due: they are spread evenly over the steps."""
    return step >= (num_sent + 1) * job.spec["steps"] / (limit + 1)


def event(kind: str, encoded: str, body: ImageRequest, spec: dict[str, Any], fields: dict[str, Any]) -> ServerSentEvent:
    data = {
        "type": kind,
        "b64_json": encoded,
        "created_at": int(time.time()),
        "size": "{}x{}".format(*final_sides(spec)),
        "quality": body.quality or "auto",
        "background": "opaque",
        "output_format": body.output_format or "png",
        **fields,
    }
    return ServerSentEvent(json.dumps(data), event=kind)
