"""The active requests of /sdapi/v1, which `progress` reports and `interrupt` and `skip` stop.

AUTOMATIC1111 runs one request at a time, and its routes act on that. Here many callers' requests run at once, so each
caller sees and stops its own, and none that came through another dialect.
"""

import asyncio
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request

from safelight.serving.a1111.options import Options
from safelight.serving.http.wait_or_cancel import failure, wait_or_cancel
from safelight.serving.jobs.keys import Caller, Keys
from safelight.serving.jobs.service import JobService, SubmitOptions
from safelight.serving.jobs.tables import ENDED, JobRow
from safelight.spec import Draft, Upscale

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(slots=True, kw_only=True)
class ActiveRequest:
    """A request while its jobs run."""

    kind: str
    tenant: str
    jobs: list[JobRow]
    began: float = field(default_factory=time.time)
    interrupted: bool = False
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of all active requests of a caller."""

    active: ActiveRequest
    fraction: float
    num_jobs: int
    ended: int
    step: int
    total_steps: int
    job: JobRow | None
    """The first running job."""
    preview: "Image | None"

    @property
    def eta_s(self) -> float:
        elapsed = time.time() - self.active.began
        return elapsed / self.fraction - elapsed if self.fraction else 0.0


class ActiveRequests:
    """The active requests of one server process; used from its event loop only."""

    def __init__(self) -> None:
        self.requests: list[ActiveRequest] = []
        self.options: dict[str, Any] = {}
        """The options of a server without keys, until it stops; those of a key are in the database."""

    def options_of(self, caller: Caller) -> dict[str, Any]:
        return caller.options if caller.tenant else self.options

    async def save_options(self, caller: Caller, options: Options, keys: Keys) -> None:
        if caller.tenant:
            await keys.database.run(keys.set_options, caller.tenant, options.given())
        else:
            self.options = options.given()

    async def run(
        self,
        request: Request,
        drafts: Sequence[Draft | Upscale],
        caller: Caller,
        submit_options: SubmitOptions,
        *,
        job_service: JobService,
        kind: str,
    ) -> list[JobRow]:
        """Accept jobs and wait for them; returns them in order, including interrupted ones.

        Raises:
            SafelightError: a job failed, or was not accepted.
        """
        jobs = await job_service.accept(drafts, caller, submit_options)
        with self.tracked(ActiveRequest(kind=kind, tenant=caller.tenant, jobs=jobs)):
            ended = await wait_or_cancel(request, jobs, job_service)
        for job in ended:
            if job.error:
                raise failure(job)
        return sorted(ended, key=lambda job: job.place)

    @contextmanager
    def tracked(self, active: ActiveRequest) -> Generator[None, None, None]:
        self.requests.append(active)
        try:
            yield
        finally:
            self.requests.remove(active)

    def of_caller(self, caller: Caller) -> list[ActiveRequest]:
        return [active for active in self.requests if active.tenant == caller.tenant]

    async def interrupt(self, caller: Caller, job_service: JobService) -> None:
        """Stop all active requests of the caller."""
        active_requests = self.of_caller(caller)
        for active in active_requests:
            active.interrupted = True
        await asyncio.gather(*(job_service.cancel(job) for active in active_requests for job in active.jobs))

    async def skip(self, caller: Caller, job_service: JobService) -> None:
        """Stop the picture that `progress` shows; the others continue."""
        progress = await self.progress(caller, job_service)
        if progress and progress.job:
            progress.active.skipped = True
            await job_service.cancel(progress.job)

    async def progress(self, caller: Caller, job_service: JobService) -> Progress | None:
        """The caller's progress; None if it has no active request."""
        active_requests = self.of_caller(caller)
        ids = [job.id for active in active_requests for job in active.jobs]
        if not ids:
            return None
        jobs = await job_service.queue.database.run(job_service.queue.get_all, ids)
        fractions: list[float] = []
        for job in jobs:
            step, total_steps = steps_of(job, job_service)
            fractions.append(1.0 if job.state in ENDED else step / total_steps if total_steps else 0.0)
        current = next((job for job in jobs if job.state == "running"), None)
        step, total_steps = steps_of(current, job_service) if current else (0, 0)
        preview = job_service.live.previews.get(current.id) if current else None
        current_request = next(
            (active for active in active_requests if current and current.id in ids_of(active)), active_requests[0]
        )
        return Progress(
            active=current_request,
            fraction=sum(fractions) / len(fractions),
            num_jobs=len(jobs),
            ended=sum(job.state in ENDED for job in jobs),
            step=step,
            total_steps=total_steps,
            job=current,
            preview=preview.image if preview else None,
        )


def active_requests_of(request: Request) -> ActiveRequests:
    return request.app.state.active_requests


def ids_of(active: ActiveRequest) -> set[str]:
    return {job.id for job in active.jobs}


def steps_of(job: JobRow, job_service: JobService) -> tuple[int, int]:
    """Finished steps and total steps, from this process if it runs the job, otherwise from the job's row."""
    return job_service.live.progress.get(job.id, (job.step, job.total_steps))
