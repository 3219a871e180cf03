"""Draws accepted jobs: claims them, walks the path, writes down how they ended.

    claim -> generate -> finish | fail | put back

Several processes may run one worker each on one database. A worker that dies leaves rows whose lease runs out.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

from safelight.assets.encode import Encoding
from safelight.errors import JobFailed, SafelightError, StorageFailed
from safelight.events import Cancelled, Decoded, Event, Failed, Learnt, Stored
from safelight.pipeline import generate
from safelight.serving.jobs.live import Live
from safelight.serving.jobs.places import told_to_strangers
from safelight.serving.jobs.queue import LEASE_S, JobQueue, Worker
from safelight.serving.jobs.tables import JobRow
from safelight.serving.jobs.training import TASK, run_training
from safelight.spec import parse_spec
from safelight.studio import Studio

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
"""How often progress is written, leases are kept and cancellations are read."""
IDLE_POLL_S = 1.0
"""How long a job accepted by another process may go unnoticed."""
RECOVER_EVERY_S = LEASE_S / 4
STORAGE_RETRIES = 5
Watch = Callable[[JobRow, Event], None]


class JobWorker:
    def __init__(
        self,
        queue: JobQueue,
        studio: Studio,
        live: Live,
        *,
        most: int,
        watch: Watch = lambda _job, _event: None,
    ) -> None:
        self.queue = queue
        self.studio = studio
        self.live = live
        self.most = most
        """Jobs in hand at once; the engine chooses among them at every step."""
        self.watch = watch
        self.me = Worker()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.wake = asyncio.Event()
        self.stopping = False
        self.drain_s = 0.0
        self.training = asyncio.Lock()
        """One run at a time: each takes all the machine has."""

    async def run(self) -> None:
        """Until `stop`; a database that cannot be reached for a while is asked again."""
        async with asyncio.TaskGroup() as group:
            beats = [group.create_task(self.keep_leases()), group.create_task(self.look_after_others())]
            while not self.stopping:
                try:
                    await self.take_more()
                except StorageFailed as error:
                    log.warning("no job could be claimed: %s", error)
                    await asyncio.sleep(IDLE_POLL_S)
            await self.drain()
            for beat in beats:
                beat.cancel()

    async def take_more(self) -> None:
        self.wake.clear()
        taken = await asyncio.to_thread(self.queue.claim, self.me, most=self.most - len(self.tasks))
        for job in taken:
            self.live.ring(job.id)
            task = asyncio.create_task(self.draw(job))
            self.tasks[job.id] = task
            task.add_done_callback(lambda _task, job_id=job.id: self.let_go(job_id))
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_POLL_S):
                await self.wake.wait()

    def let_go(self, job_id: str) -> None:
        del self.tasks[job_id]
        self.live.forget(job_id)
        self.live.ring(job_id)
        self.wake.set()

    async def draw(self, job: JobRow) -> None:
        """One job to its end; whatever happens, its row says so."""
        try:
            await self.settle(job, await self.walk(job))
        except asyncio.CancelledError:
            raise
        except StorageFailed as error:
            # The row stays as it is: once the lease has run out, the job is drawn again.
            log.warning("job %s: how it ended could not be written: %s", job.id, error)
        except Exception:
            log.exception("job %s failed", job.id)
            broken = JobFailed("something broke in the server while it drew this; its log has the details")
            await asyncio.to_thread(self.queue.fail, job, self.me, self.as_row(broken))

    async def walk(self, job: JobRow) -> tuple[Event, float]:
        """The last event, and the network seconds spent."""
        if job.spec.get("task") == TASK:
            return await self.learn(job)
        compute_s = 0.0
        try:
            spec, encoding = parse_spec(job.spec), Encoding(**job.encoding)
            events = generate(spec, self.studio, encoding=encoding, tenant=job.tenant, priority=job.priority)
            async with aclosing(events):
                async for event in events:
                    self.watch(job, event)
                    self.live.tell(job.id, event)
                    if isinstance(event, Decoded):
                        compute_s = event.compute_s
                    if isinstance(event, Stored | Failed | Cancelled):
                        return event, compute_s
        except SafelightError as error:
            return Failed(job_id=job.id, error=error), compute_s
        raise AssertionError("the path ends with Stored, Failed or Cancelled")

    async def learn(self, job: JobRow) -> tuple[Event, float]:
        """The same for a training run, whose seconds are all the network's."""
        try:
            async with self.training, aclosing(run_training(job.id, job.spec, self.studio.settings)) as events:
                async for event in events:
                    self.live.tell(job.id, event)
                    if isinstance(event, Learnt | Failed):
                        return event, event.seconds if isinstance(event, Learnt) else 0.0
        except SafelightError as error:
            return Failed(job_id=job.id, error=error), 0.0
        raise AssertionError("a run ends with Learnt or Failed")

    async def settle(self, job: JobRow, ended: tuple[Event, float]) -> None:
        match ended:
            case Stored() as stored, compute_s:
                await asyncio.to_thread(
                    self.queue.finish,
                    job,
                    self.me,
                    asset_id=stored.asset_id,
                    seconds=stored.seconds,
                    compute_s=compute_s,
                    total_steps=self.live.progress.get(job.id, (0, 0))[1],
                )
            case Learnt() as learnt, compute_s:
                await asyncio.to_thread(
                    self.queue.finish,
                    job,
                    self.me,
                    asset_id=None,
                    seconds=learnt.seconds,
                    compute_s=compute_s,
                    total_steps=self.live.progress.get(job.id, (0, 0))[1],
                    more={name: getattr(learnt, name) for name in ("kind", "name", "reference", "digest")},
                )
            case Failed(error=StorageFailed() as error), _ if job.attempts <= STORAGE_RETRIES:
                log.warning("job %s: %s", job.id, error)
                await asyncio.to_thread(
                    self.queue.put_back, job, self.me, delay_s=2.0**job.attempts, why=self.as_row(error)["message"]
                )
            case Failed(error=error), _:
                await asyncio.to_thread(self.queue.fail, job, self.me, self.as_row(error))
            case _:
                await asyncio.to_thread(self.queue.cancelled, job, self.me)

    def as_row(self, error: SafelightError) -> dict[str, Any]:
        """What callers, webhooks and events will say of it."""
        message = told_to_strangers(error, self.studio.settings.home)
        return {"status": error.status, "code": error.code, "message": message}

    async def keep_leases(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            progress = {job_id: self.live.progress.get(job_id, (0, 0)) for job_id in self.tasks}
            try:
                for job_id in await asyncio.to_thread(self.queue.renew, self.me, progress):
                    await self.drop(job_id)
            except StorageFailed as error:
                log.warning("leases could not be renewed: %s", error)

    async def look_after_others(self) -> None:
        while True:
            try:
                for job_id in (
                    *await asyncio.to_thread(self.queue.recover, self.me),
                    *await asyncio.to_thread(self.queue.expire),
                ):
                    self.live.ring(job_id)
                    self.wake.set()
            except StorageFailed as error:
                log.warning("lost jobs could not be looked for: %s", error)
            await asyncio.sleep(RECOVER_EVERY_S)

    async def drop(self, job_id: str) -> None:
        """Stop drawing it, wherever in its path it is; its row becomes cancelled if it is still ours."""
        if task := self.tasks.get(job_id):
            await cancelled(task)
            job = await asyncio.to_thread(self.queue.get, job_id)
            await asyncio.to_thread(self.queue.cancelled, job, self.me)
            self.live.ring(job_id)

    def stop(self, *, drain_s: float) -> None:
        """Take no more; `run` ends once those in hand have ended, or after `drain_s`."""
        self.stopping = True
        self.drain_s = drain_s
        self.wake.set()

    async def drain(self) -> None:
        """What has not ended in time goes back in line."""
        if self.tasks:
            await asyncio.wait(list(self.tasks.values()), timeout=self.drain_s)
        for job_id, task in list(self.tasks.items()):
            await cancelled(task)
            job = await asyncio.to_thread(self.queue.get, job_id)
            await asyncio.to_thread(self.queue.put_back, job, self.me, why="the server was stopped")


async def cancelled(task: asyncio.Task[None]) -> None:
    """Once, however many ask: what is told twice to stop, as a run that writes its checkpoint, stops at once."""
    if not task.cancelling():
        task.cancel()
    await asyncio.wait([task])
