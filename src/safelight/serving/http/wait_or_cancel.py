"""Waits for a request's pictures while its client waits; used by every dialect that answers with pictures."""

import asyncio
from collections.abc import Sequence

from fastapi import Request
from starlette.types import Message

from safelight.errors import JobCancelled, SafelightError
from safelight.serving.jobs.service import JobService
from safelight.serving.jobs.tables import JobRow


async def wait_or_cancel(request: Request, jobs: Sequence[JobRow], job_service: JobService) -> list[JobRow]:
    """Wait for the jobs while the client is connected; if it disconnects, cancel them at their next step."""
    waiting = asyncio.create_task(job_service.wait(jobs))
    disconnected = asyncio.create_task(wait_for_disconnect(request))
    try:
        await asyncio.wait((waiting, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await asyncio.gather(*(job_service.cancel(job) for job in jobs))
            raise JobCancelled("the client disconnected before its pictures were drawn")
        return waiting.result()
    finally:
        waiting.cancel()
        disconnected.cancel()


async def wait_for_disconnect(request: Request) -> None:
    """Return once the client has closed the connection; the body must have been read before."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await request.receive()


def failure(job: JobRow) -> SafelightError:
    """The error of a job that has no picture."""
    if job.error is None:
        return JobCancelled(f"the job {job.id} is {job.state}")
    error = SafelightError(job.error["message"])
    error.status, error.code = job.error["status"], job.error["code"]
    return error
