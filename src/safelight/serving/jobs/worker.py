"""Draws accepted jobs: claims them, walks the path, writes down how they ended.

    claim -> generate -> finish | fail | put back

Several processes may run one worker each on one database. What one that dies had in hand is taken up by the others.
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
from safelight.errors import EngineStopped, JobFailed, SafelightError, StorageFailed
from safelight.events import Cancelled, Decoded, Event, Failed, Started, Stepped, Stored, Trained
from safelight.pipeline import generate
from safelight.serving.jobs.attempts import LEASE_S, Attempts, JobProgress, is_training
from safelight.serving.jobs.live import JobListeners
from safelight.serving.jobs.loops import Loop
from safelight.serving.jobs.places import told_to_strangers
from safelight.serving.jobs.queue import JobQueue
from safelight.serving.jobs.tables import JobRow
from safelight.serving.jobs.training import run_training
from safelight.spec import Upscale, parse_spec
from safelight.studio import Studio

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
"""How often progress is written, cancellations are read, and the worker says that it is alive."""
IDLE_POLL_S = 1.0
"""How long a job accepted by another process may go unnoticed."""
RECOVER_EVERY_S = LEASE_S / 8
STORAGE_RETRIES = 5
Watch = Callable[[JobRow, Event], None]


@dataclass(eq=False, slots=True)
class HeldAttempt:
    """An attempt that this worker has in hand."""

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
        most: int,
        watch: Watch = lambda _job, _event: None,
    ) -> None:
        self.queue = queue
        self.attempts = Attempts(queue)
        self.studio = studio
        self.live = live
        self.most = most
        """Jobs in hand at once; the engine chooses among them at every step."""
        self.watch = watch
        self.hands: dict[str, HeldAttempt] = {}
        """By job."""
        self.wake = asyncio.Event()
        self.stopped = asyncio.Event()
        self.drain_s = 0.0
        self.cancelling: set[asyncio.Task[None]] = set()
        """Those that end jobs somebody cancelled: a run may take half a minute to write its checkpoint."""
        self.listening = -math.inf
        """Since when it could look at what others say; from the start, as far as it knows."""
        self.training = asyncio.Lock()
        """One run at a time: each takes all the machine has."""
        self.claiming = Loop("taking jobs from the line", self.take_more)
        self.beating = Loop("keeping jobs in hand", self.renew, every_s=HEARTBEAT_S)
        self.recovering = Loop("looking for lost jobs", self.look_after_others, every_s=RECOVER_EVERY_S)

    async def run(self) -> None:
        """Until `stop`, and then until what is in hand has ended or was put back."""
        claiming = asyncio.create_task(self.claiming.run())
        others = [asyncio.create_task(loop.run()) for loop in (self.beating, self.recovering)]
        await self.stopped.wait()
        await claiming  # a claim that is cut off would leave jobs in nobody's hand
        await self.drain()
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        with suppress(StorageFailed):  # the others then wait until it has been silent for long enough
            await self.queue.database.run(self.attempts.leave)

    def trouble(self) -> str:
        """Why a job that was accepted now would not be drawn soon; empty where it would."""
        if self.stopped.is_set():
            return "the server is shutting down"
        if not self.studio.backend.alive:
            return "the engine has stopped; the log says why, and a new start helps"
        return next(filter(None, (loop.trouble() for loop in (self.claiming, self.beating, self.recovering))), "")

    # Loops

    async def take_more(self) -> None:
        self.wake.clear()
        drawn = [hand.job for hand in self.hands.values() if not is_training(hand.job)]
        training = len(drawn) < len(self.hands)
        room = self.most - len(drawn)
        if any(job.suspect for job in drawn) or not self.studio.backend.alive:
            room = 0
        for job in await self.queue.database.run(self.attempts.claim, most=room, busy=bool(drawn), training=training):
            if former := self.hands.get(job.id):
                # It was lost and came back before it was let go.
                await stopped(former.task)
            self.take_in_hand(job)
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_POLL_S):
                await self.wake.wait()

    def take_in_hand(self, job: JobRow) -> None:
        hand = self.hands[job.id] = HeldAttempt(job)
        self.live.ring(job.id)
        hand.task = asyncio.create_task(self.draw(hand))
        hand.task.add_done_callback(lambda _task: self.let_go(hand))

    def let_go(self, hand: HeldAttempt) -> None:
        job_id = hand.job.id
        if self.hands.get(job_id) is hand:
            del self.hands[job_id]
            self.live.forget(job_id)
        self.live.ring(job_id)
        self.wake.set()

    async def renew(self) -> None:
        hands = dict(self.hands)
        kept = await self.queue.database.run(
            self.attempts.renew, {job_id: (hand.job, hand.progress) for job_id, hand in hands.items()}
        )
        for job_id in kept.lost:
            # By now it may be in hand again, as another attempt.
            if not hands[job_id].task.done() and not hands[job_id].task.cancelling():
                log.warning("job %s was taken up by another worker", job_id)
                hands[job_id].task.cancel()
        for job_id in kept.cancelled:
            if not hands[job_id].task.cancelling():
                # Not waited for: meanwhile nobody would hear that the others are alive.
                ending = asyncio.create_task(self.end_cancelled(hands[job_id]))
                self.cancelling.add(ending)
                ending.add_done_callback(self.cancelling.discard)

    async def look_after_others(self) -> None:
        now = time.monotonic()
        if now - self.recovering.turned > LEASE_S / 2:
            # The database was away, or this process stood still: what others said meanwhile could not be heard.
            self.listening = now
        looks = [self.queue.expire]
        if now - self.listening > LEASE_S:
            looks.append(lambda: self.attempts.recover(list(self.hands)))
        for look in looks:
            for job_id in await self.queue.database.run(look):
                self.live.ring(job_id)
                self.wake.set()

    # One job

    async def draw(self, hand: HeldAttempt) -> None:
        """One job to its end; whatever happens, its row says so."""
        try:
            ended = await self.run_job(hand)
        except asyncio.CancelledError:
            raise
        except SafelightError as error:
            ended = Failed(job_id=hand.job.id, error=error)
        except Exception:
            log.exception("job %s failed", hand.job.id)
            broken = JobFailed("something broke in the server while it drew this; its log has the details")
            ended = Failed(job_id=hand.job.id, error=broken)
        while True:
            try:
                await self.queue.database.run(self.settle, hand, ended)
                return
            except StorageFailed as error:
                # The picture is there: as long as the job is in hand, its end can be written later.
                log.warning("job %s: how it ended cannot be written yet: %s", hand.job.id, error)
                await asyncio.sleep(IDLE_POLL_S)

    async def run_job(self, hand: HeldAttempt) -> Event:
        """The last event."""
        job = hand.job
        if is_training(job):
            return await self.learn(hand)
        spec, encoding = parse_spec(job.spec), Encoding(**job.encoding)
        if isinstance(spec, Upscale):
            await self.begin(hand)
        events = generate(spec, self.studio, encoding=encoding, tenant=job.tenant, priority=job.priority)
        async with aclosing(events):
            async for event in events:
                self.watch(job, event)
                self.live.tell(job.id, event)
                match event:
                    case Started():
                        hand.progress = JobProgress(total_steps=event.total_steps)
                        await self.begin(hand)
                    case Stepped():
                        hand.progress = JobProgress(
                            step=event.step, total_steps=event.total_steps, compute_s=event.compute_s
                        )
                    case Decoded():
                        total = hand.progress.total_steps
                        hand.progress = JobProgress(step=total, total_steps=total, compute_s=event.compute_s)
                    case Stored() | Failed() | Cancelled():
                        return event
                    case _:
                        pass
        raise AssertionError("the path ends with Stored, Failed or Cancelled")

    async def begin(self, hand: HeldAttempt) -> None:
        """Written before much can have happened: should this process die, its neighbours in line are not suspected."""
        with suppress(StorageFailed):
            await self.queue.database.run(self.attempts.begin, hand.job)

    async def learn(self, hand: HeldAttempt) -> Event:
        """The same for a training run, whose seconds are all the network's."""
        began = time.monotonic()
        async with self.training, aclosing(run_training(hand.job.id, hand.job.spec, self.studio.settings)) as events:
            async for event in events:
                self.live.tell(hand.job.id, event)
                match event:
                    case Started():
                        began = time.monotonic()
                        await self.begin(hand)
                    case Stepped():
                        spent_s = time.monotonic() - began
                        hand.progress = JobProgress(step=event.step, total_steps=event.total_steps, compute_s=spent_s)
                    case Trained() | Failed():
                        return event
                    case _:
                        pass
        raise AssertionError("a run ends with Learnt or Failed")

    def settle(self, hand: HeldAttempt, ended: Event) -> None:
        job, progress, attempts = hand.job, hand.progress, self.attempts
        match ended:
            case Stored(asset_id=asset_id, seconds=seconds):
                attempts.finish(job, asset_id=asset_id, seconds=seconds, progress=progress)
            case Trained() as learnt:
                more = {name: getattr(learnt, name) for name in ("kind", "name", "reference", "digest")}
                attempts.finish(job, asset_id=None, seconds=learnt.seconds, progress=progress, more=more)
            case Failed(error=EngineStopped() as error):
                attempts.put_back(job, progress, why=self.as_row(error)["message"], suspect=True)
            case Failed(error=StorageFailed() as error) if job.attempts <= STORAGE_RETRIES:
                log.warning("job %s: %s", job.id, error)
                attempts.put_back(job, progress, delay_s=2.0**job.attempts, why=self.as_row(error)["message"])
            case Failed(error=error):
                attempts.fail(job, self.as_row(error), progress)
            case _:
                attempts.put_back(job, progress, why="it was stopped")

    def as_row(self, error: SafelightError) -> dict[str, Any]:
        """What callers, webhooks and events will say of it."""
        message = told_to_strangers(error, self.studio.settings.home)
        return {"status": error.status, "code": error.code, "message": message}

    # Ending early

    async def drop(self, job_id: str) -> None:
        """Stop drawing a job that somebody cancelled, wherever in its path it is."""
        if hand := self.hands.get(job_id):
            await self.cancel(hand)

    async def cancel(self, hand: HeldAttempt) -> None:
        await stopped(hand.task)
        await self.queue.database.run(self.attempts.cancelled, hand.job, hand.progress)
        self.live.ring(hand.job.id)

    async def end_cancelled(self, hand: HeldAttempt) -> None:
        with suppress(StorageFailed):  # it ends when somebody looks for lost jobs
            await self.cancel(hand)

    def stop(self, *, drain_s: float) -> None:
        """Take no more; `run` ends once those in hand have ended, or after `drain_s`."""
        self.drain_s = drain_s
        self.claiming.stopping = True
        self.stopped.set()
        self.wake.set()

    async def drain(self) -> None:
        """What has not ended in time goes back in line."""
        if self.hands:
            await asyncio.wait([hand.task for hand in self.hands.values()], timeout=self.drain_s)
        await asyncio.gather(*map(self.give_back, list(self.hands.values())), *self.cancelling)

    async def give_back(self, hand: HeldAttempt) -> None:
        await stopped(hand.task)
        with suppress(StorageFailed):
            await self.queue.database.run(self.attempts.put_back, hand.job, hand.progress, why="the server was stopped")


async def stopped(task: asyncio.Task[None]) -> None:
    """Once, however many ask: what is told twice to stop, as a run that writes its checkpoint, stops at once."""
    if not task.cancelling():
        task.cancel()
    await asyncio.wait([task])
