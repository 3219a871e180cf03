"""Partial images as they are drawn, in the events that OpenAI's SDK reads.

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

BLOWN_UP = 64
"""How many times as large as a preview the picture is, in pixels."""


def stream(parts: Parts, body: ImageRequest, jobs: Sequence[JobRow], *, kind: str, returns: bool) -> Response:
    """`returns`: a client that goes away may come back for its pictures."""
    return EventSourceResponse(tell(parts, body, jobs, kind=kind, returns=returns), ping=15)


async def tell(
    parts: Parts, body: ImageRequest, jobs: Sequence[JobRow], *, kind: str, returns: bool
) -> AsyncGenerator[ServerSentEvent, None]:
    """A client that goes away closes this, as a server that stops does; its jobs are cancelled if it cannot return."""
    told: dict[str, int] = {job.id: 0 for job in jobs}
    most = body.partial_images or 0
    open_jobs = {job.id: job for job in jobs}
    try:
        async for job_id, item in parts.job_service.follow(jobs):
            match item:
                case Previewed(step=step, image=image) if told[job_id] < most and due(
                    step, told[job_id], most, open_jobs[job_id]
                ):
                    spec = open_jobs[job_id].spec
                    turn = await parts.studio.claim(image, tenant=jobs[0].tenant, copies=BLOWN_UP, accepted=True)
                    whole = await parts.studio.image_pool.work(turn, blown_up, image, final_sides(spec))
                    more = {"partial_image_index": told[job_id]}
                    told[job_id] += 1
                    yield event(f"{kind}.partial_image", whole, body, spec, more)
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
        left = [] if returns else [job for job in open_jobs.values() if job.state not in ENDED]
        await asyncio.shield(asyncio.gather(*(parts.job_service.cancel(job) for job in left)))


def blown_up(image: Image.Image, size: tuple[int, int]) -> str:
    """A preview, at the size of the picture."""
    return as_base64(image.resize(size, Image.Resampling.BICUBIC))


def due(step: int, told: int, most: int, job: JobRow) -> bool:
    """Partial images are spread evenly over the steps."""
    return step >= (told + 1) * job.spec["steps"] / (most + 1)


def event(kind: str, encoded: str, body: ImageRequest, spec: dict[str, Any], more: dict[str, Any]) -> ServerSentEvent:
    data = {
        "type": kind,
        "b64_json": encoded,
        "created_at": int(time.time()),
        "size": "{}x{}".format(*final_sides(spec)),
        "quality": body.quality or "auto",
        "background": "opaque",
        "output_format": body.output_format or "png",
        **more,
    }
    return ServerSentEvent(json.dumps(data), event=kind)
