"""Runs accepted jobs: claims them, generates their pictures, records how they ended.

    claim -> generate -> finish | fail | put back

Several processes may run one worker each on one database. When one dies, the others recover its jobs.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from safelight.assets.encode import Encoding
from safelight.errors import EngineStopped, JobFailed, SafelightError, SigningFailed, StorageFailed
from safelight.events import Cancelled, Decoded, Event, Failed, Started, Stepped, Stored, Trained
from safelight.pipeline import generate
from safelight.serving.jobs.attempts import LEASE_S, Attempts, JobProgress, is_training
from safelight.serving.jobs.live import JobListeners
from safelight.serving.jobs.loops import Loop
from safelight.serving.jobs.queue import JobQueue
from safelight.serving.jobs.redact import caller_message
from safelight.serving.jobs.tables import JobRow
from safelight.serving.jobs.training import run_training
from safelight.spec import Upscale, parse_spec
from safelight.studio import Studio

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
"""How often the worker writes progress and its heartbeat, and reads cancellations."""
IDLE_POLL_S = 1.0
"""How long a job accepted by another process may remain unnoticed."""
RECOVER_EVERY_S = LEASE_S / 8
STORAGE_RETRIES = 5
Watch = Callable[[JobRow, Event], None]


@dataclass(eq=False, slots=True)
class HeldAttempt:
    """An attempt that runs in this worker."""

    job: JobRow
    task: "asyncio.Task[None]" = field(init=False)
    progress: JobProgress = field(default_factory=JobProgress)


class JobWorker:
    def __init__(
        self,
        queue: JobQueue,
        studio: Studio,
        live: JobListeners,
        *,
        max_jobs: int,
        watch: Watch = lambda _job, _event: None,
    ) -> None:
        self.queue = queue
        self.attempts = Attempts(queue)
        self.studio = studio
        self.live = live
        self.max_jobs = max_jobs
        """Jobs held at once; the engine chooses among them at every step."""
        self.watch = watch
        self.held: dict[str, HeldAttempt] = {}
        """By job id."""
        self.wake = asyncio.Event()
        self.stopped = asyncio.Event()
        self.drain_s = 0.0
        self.cancelling: set[asyncio.Task[None]] = set()
        """Tasks that stop cancelled jobs: a training run may take half a minute to write its checkpoint."""
        self.others_visible_since = -math.inf
        """Since when this worker could read the heartbeats of others; at the start, always."""
        self.training = asyncio.Lock()
        """One training run at a time: each uses the whole machine."""
        self.claiming = Loop("claiming jobs", self.claim_jobs)
        self.beating = Loop("renewing held jobs", self.renew, every_s=HEARTBEAT_S)
        self.recovering = Loop("recovering lost jobs", self.recover_jobs, every_s=RECOVER_EVERY_S)

    async def run(self) -> None:
        """Run until `stop`, and then until the held jobs have ended or were put back."""
        claiming = asyncio.create_task(self.claiming.run())
        others = [asyncio.create_task(loop.run()) for loop in (self.beating, self.recovering)]
        await self.stopped.wait()
        await claiming  # a cancelled claim would leave jobs that nobody runs
        await self.drain()
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        with suppress(StorageFailed):  # the others then recover its jobs when its lease ends
            await self.queue.database.run(self.attempts.unregister)

    def problem(self) -> str:
        """Why a job accepted now would not run soon; empty if it would."""
        if self.stopped.is_set():
            return "the server is shutting down"
        if not self.studio.backend.alive:
            return "the engine has stopped; the log has the reason, and a restart helps"
        return next(filter(None, (loop.problem() for loop in (self.claiming, self.beating, self.recovering))), "")

    # Loops

    async def claim_jobs(self) -> None:
        self.wake.clear()
        drawn = [attempt.job for attempt in self.held.values() if not is_training(attempt.job)]
        training = len(drawn) < len(self.held)
        free = self.max_jobs - len(drawn)
        if any(job.suspect for job in drawn) or not self.studio.backend.alive:
            free = 0
        for job in await self.queue.database.run(self.attempts.claim, limit=free, busy=bool(drawn), training=training):
            if former := self.held.get(job.id):
                # This worker lost the job and claims it again before the old attempt was released.
                await cancel_and_wait(former.task)
            self.start(job)
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_POLL_S):
                await self.wake.wait()

    def start(self, job: JobRow) -> None:
        attempt = self.held[job.id] = HeldAttempt(job)
        self.live.notify_changed(job.id)
        attempt.task = asyncio.create_task(self.process(attempt))
        attempt.task.add_done_callback(lambda _task: self.release(attempt))

    def release(self, attempt: HeldAttempt) -> None:
        job_id = attempt.job.id
        if self.held.get(job_id) is attempt:
            del self.held[job_id]
            self.live.forget(job_id)
        self.live.notify_changed(job_id)
        self.wake.set()

    async def renew(self) -> None:
        held = dict(self.held)
        dropped = await self.queue.database.run(
            self.attempts.renew, {job_id: (attempt.job, attempt.progress) for job_id, attempt in held.items()}
        )
        for job_id in dropped.lost:
            # By now this worker may hold it again, as another attempt.
            if not held[job_id].task.done() and not held[job_id].task.cancelling():
                log.warning("job %s was claimed by another worker", job_id)
                held[job_id].task.cancel()
        for job_id in dropped.cancelled:
            if not held[job_id].task.cancelling():
                # Not awaited here, which would delay the heartbeat.
                ending = asyncio.create_task(self.end_cancelled(held[job_id]))
                self.cancelling.add(ending)
                ending.add_done_callback(self.cancelling.discard)

    async def recover_jobs(self) -> None:
        now = time.monotonic()
        if now - self.recovering.last_success > LEASE_S / 2:
            # The database was away, or this process was suspended: it could not read the heartbeats of others.
            self.others_visible_since = now
        checks = [self.queue.expire]
        if now - self.others_visible_since > LEASE_S:
            checks.append(lambda: self.attempts.recover(list(self.held)))
        for check in checks:
            for job_id in await self.queue.database.run(check):
                self.live.notify_changed(job_id)
                self.wake.set()

    # One job

    async def process(self, attempt: HeldAttempt) -> None:
        """Run one job to its end, and record in its row how it ended."""
        try:
            ended = await self.run_job(attempt)
        except asyncio.CancelledError:
            raise
        except SafelightError as error:
            ended = Failed(job_id=attempt.job.id, error=error)
        except Exception:
            log.exception("job %s failed", attempt.job.id)
            broken = JobFailed("an internal error occurred while drawing this; the server's log has the details")
            ended = Failed(job_id=attempt.job.id, error=broken)
        while True:
            try:
                await self.queue.database.run(self.record_end, attempt, ended)
                return
            except StorageFailed as error:
                # The picture is stored: while the job is held, its end can be written later.
                log.warning("job %s: its result cannot be written yet: %s", attempt.job.id, error)
                await asyncio.sleep(IDLE_POLL_S)

    async def run_job(self, attempt: HeldAttempt) -> Event:
        """Run a job and return its last event."""
        job = attempt.job
        if is_training(job):
            return await self.run_training_job(attempt)
        spec, encoding = parse_spec(job.spec), Encoding(**job.encoding)
        if isinstance(spec, Upscale):
            await self.begin(attempt)
        events = generate(spec, self.studio, encoding=encoding, tenant=job.tenant, priority=job.priority, place=job.id)
        async with aclosing(events):
            async for event in events:
                self.watch(job, event)
                self.live.publish(job.id, event)
                match event:
                    case Started():
                        attempt.progress = JobProgress(total_steps=event.total_steps)
                        await self.begin(attempt)
                    case Stepped():
                        attempt.progress = JobProgress(
                            step=event.step, total_steps=event.total_steps, compute_s=event.compute_s
                        )
                    case Decoded():
                        total = attempt.progress.total_steps
                        attempt.progress = JobProgress(step=total, total_steps=total, compute_s=event.compute_s)
                    case Stored() | Failed() | Cancelled():
                        return event
                    case _:
                        pass
        raise AssertionError("the path ends with Stored, Failed or Cancelled")

    async def begin(self, attempt: HeldAttempt) -> None:
        """Record early that drawing begins: if this process dies, jobs that had not begun are not suspected."""
        with suppress(StorageFailed):
            await self.queue.database.run(self.attempts.begin, attempt.job)

    async def run_training_job(self, attempt: HeldAttempt) -> Event:
        """Run a training job and return its last event; all its seconds count as network time."""
        began = time.monotonic()
        async with (
            self.training,
            aclosing(run_training(attempt.job.id, attempt.job.spec, self.studio.settings)) as events,
        ):
            async for event in events:
                self.live.publish(attempt.job.id, event)
                match event:
                    case Started():
                        began = time.monotonic()
                        await self.begin(attempt)
                    case Stepped():
                        spent_s = time.monotonic() - began
                        attempt.progress = JobProgress(
                            step=event.step, total_steps=event.total_steps, compute_s=spent_s
                        )
                    case Trained() | Failed():
                        return event
                    case _:
                        pass
        raise AssertionError("a run ends with Trained or Failed")

    def record_end(self, attempt: HeldAttempt, ended: Event) -> None:
        job, progress, attempts = attempt.job, attempt.progress, self.attempts
        match ended:
            case Stored(asset_id=asset_id, seconds=seconds):
                attempts.finish(job, asset_id=asset_id, seconds=seconds, progress=progress)
            case Trained() as trained:
                details = {name: getattr(trained, name) for name in ("kind", "name", "reference", "digest")}
                attempts.finish(job, asset_id=None, seconds=trained.seconds, progress=progress, details=details)
            case Failed(error=EngineStopped() as error):
                attempts.put_back(job, progress, reason=self.error_fields(error)["message"], suspect=True)
            case Failed(error=(StorageFailed() | SigningFailed()) as error) if job.attempts <= STORAGE_RETRIES:
                log.warning("job %s: %s", job.id, error)
                attempts.put_back(job, progress, delay_s=2.0**job.attempts, reason=self.error_fields(error)["message"])
            case Failed(error=error):
                attempts.fail(job, self.error_fields(error), progress)
            case _:
                attempts.put_back(job, progress, reason="it was stopped")

    def error_fields(self, error: SafelightError) -> dict[str, Any]:
        """The error as callers, webhooks and events report it."""
        message = caller_message(error, self.studio.settings.home)
        return {"status": error.status, "code": error.code, "message": message}

    # Ending early

    async def cancel_if_held(self, job_id: str) -> None:
        """Stop a cancelled job, at whatever stage it is."""
        if attempt := self.held.get(job_id):
            await self.cancel(attempt)

    async def cancel(self, attempt: HeldAttempt) -> None:
        await cancel_and_wait(attempt.task)
        await self.queue.database.run(self.attempts.cancelled, attempt.job, attempt.progress)
        self.live.notify_changed(attempt.job.id)

    async def end_cancelled(self, attempt: HeldAttempt) -> None:
        with suppress(StorageFailed):  # a later recovery ends it
            await self.cancel(attempt)

    def stop(self, *, drain_s: float) -> None:
        """Claim no more jobs; `run` returns once the held ones have ended, or after `drain_s`."""
        self.drain_s = drain_s
        self.claiming.stopping = True
        self.stopped.set()
        self.wake.set()

    async def drain(self) -> None:
        """Wait for the held jobs; put back those that have not ended in time."""
        if self.held:
            await asyncio.wait([attempt.task for attempt in self.held.values()], timeout=self.drain_s)
        await asyncio.gather(*map(self.give_back, list(self.held.values())), *self.cancelling)

    async def give_back(self, attempt: HeldAttempt) -> None:
        await cancel_and_wait(attempt.task)
        with suppress(StorageFailed):
            await self.queue.database.run(
                self.attempts.put_back, attempt.job, attempt.progress, reason="the server was stopped"
            )


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    """Cancel a task once, however many callers: cancelled twice, a run that writes its checkpoint would abort."""
    if not task.cancelling():
        task.cancel()
    await asyncio.wait([task])
