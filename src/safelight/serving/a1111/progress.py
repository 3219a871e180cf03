"""What is being drawn for whom through /sdapi/v1: what `progress` tells, and what `interrupt` and `skip` stop.

There, one program draws one request at a time and these mean "the current one". Here many callers draw at once, so each
sees and stops its own, and nothing that was asked for through another dialect.
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
    """One request while it is drawn."""

    kind: str
    tenant: str
    jobs: list[JobRow]
    began: float = field(default_factory=time.time)
    interrupted: bool = False
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Of all that a caller has asked for and not yet got."""

    sitting: ActiveRequest
    fraction: float
    num_jobs: int
    ended: int
    step: int
    total_steps: int
    job: JobRow | None
    """The first that is being drawn."""
    preview: "Image | None"

    @property
    def eta_s(self) -> float:
        passed = time.time() - self.sitting.began
        return passed / self.fraction - passed if self.fraction else 0.0


class ActiveRequests:
    """Belongs to one server process and its event loop."""

    def __init__(self) -> None:
        self.now: list[ActiveRequest] = []
        self.options: dict[str, Any] = {}
        """Those of a server without keys, until it stops; a key's are in the database."""

    def options_of(self, caller: Caller) -> dict[str, Any]:
        return caller.options if caller.tenant else self.options

    async def keep_options(self, caller: Caller, options: Options, keys: Keys) -> None:
        if caller.tenant:
            await keys.database.run(keys.set_options, caller.tenant, options.given())
        else:
            self.options = options.given()

    async def draw(
        self,
        request: Request,
        drafts: Sequence[Draft | Upscale],
        caller: Caller,
        fields: SubmitOptions,
        *,
        job_service: JobService,
        kind: str,
    ) -> list[JobRow]:
        """The pictures' jobs once they have ended; those that were interrupted are among them.

        Raises:
            SafelightError: one of them failed, or could not be accepted.
        """
        jobs = await job_service.accept(drafts, caller, fields)
        with self.sitting(ActiveRequest(kind=kind, tenant=caller.tenant, jobs=jobs)):
            ended = await wait_or_cancel(request, jobs, job_service)
        for job in ended:
            if job.error:
                raise failure(job)
        return sorted(ended, key=lambda job: job.place)

    @contextmanager
    def sitting(self, sitting: ActiveRequest) -> Generator[None, None, None]:
        self.now.append(sitting)
        try:
            yield
        finally:
            self.now.remove(sitting)

    def of(self, caller: Caller) -> list[ActiveRequest]:
        return [sitting for sitting in self.now if sitting.tenant == caller.tenant]

    async def interrupt(self, caller: Caller, job_service: JobService) -> None:
        """Stop all that the caller has under way here."""
        sittings = self.of(caller)
        for sitting in sittings:
            sitting.interrupted = True
        await asyncio.gather(*(job_service.cancel(job) for sitting in sittings for job in sitting.jobs))

    async def skip(self, caller: Caller, job_service: JobService) -> None:
        """Stop the picture that `progress` shows; the others go on."""
        progress = await self.progress(caller, job_service)
        if progress and progress.job:
            progress.sitting.skipped = True
            await job_service.cancel(progress.job)

    async def progress(self, caller: Caller, job_service: JobService) -> Progress | None:
        """None while nothing is asked for."""
        sittings = self.of(caller)
        ids = [job.id for sitting in sittings for job in sitting.jobs]
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
        owner = next((sitting for sitting in sittings if current and current.id in ids_of(sitting)), sittings[0])
        return Progress(
            sitting=owner,
            fraction=sum(fractions) / len(fractions),
            num_jobs=len(jobs),
            ended=sum(job.state in ENDED for job in jobs),
            step=step,
            total_steps=total_steps,
            job=current,
            preview=preview.image if preview else None,
        )


def active_requests_of(request: Request) -> ActiveRequests:
    return request.app.state.sittings


def ids_of(sitting: ActiveRequest) -> set[str]:
    return {job.id for job in sitting.jobs}


def steps_of(job: JobRow, job_service: JobService) -> tuple[int, int]:
    """Steps finished and steps in all, as this process knows or as the process that draws wrote down."""
    return job_service.live.progress.get(job.id, (job.step, job.total_steps))
