"""Waiting for pictures on behalf of a client that waits, too: what every dialect that answers with pictures shares."""

import asyncio
from collections.abc import Sequence

from fastapi import Request
from starlette.types import Message

from safelight.errors import JobCancelled, SafelightError
from safelight.serving.jobs.service import JobService
from safelight.serving.jobs.tables import JobRow


async def wait_or_cancel(request: Request, jobs: Sequence[JobRow], job_service: JobService) -> list[JobRow]:
    """Wait for the jobs as long as the client does: one that goes away cancels them at their next step."""
    waiting = asyncio.create_task(job_service.wait(jobs))
    leaving = asyncio.create_task(gone(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await asyncio.gather(*(job_service.cancel(job) for job in jobs))
            raise JobCancelled("the client went away before its pictures were drawn")
        return waiting.result()
    finally:
        waiting.cancel()
        leaving.cancel()


async def gone(request: Request) -> None:
    """Returns once the client has closed the connection; the body has been read before."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await request.receive()


def failure(job: JobRow) -> SafelightError:
    """Why a job has no picture, as the error it was."""
    if job.error is None:
        return JobCancelled(f"the job {job.id} is {job.state}")
    error = SafelightError(job.error["message"])
    error.status, error.code = job.error["status"], job.error["code"]
    return error
