"""A worker keeps sending heartbeats and recovering jobs while one of its jobs or the database is slow."""

import asyncio
import time
from typing import cast

from tests.patience import wait_in_loop_until
from tests.serving.jobs.conftest import Clock

from safelight.serving.jobs.attempts import LEASE_S, Attempts
from safelight.serving.jobs.live import JobListeners
from safelight.serving.jobs.queue import JobQueue, NewJob, Terms
from safelight.serving.jobs.tables import JobRow
from safelight.serving.jobs.worker import HeldAttempt, JobWorker
from safelight.studio import Studio

ORDER = NewJob(spec={"prompt": "a red apple"}, encoding={})


class Slow(JobWorker):
    """The first job of a request takes long to stop, as a training run does that writes its checkpoint."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__(queue, cast(Studio, None), JobListeners(), max_jobs=8)
        self.stopping, self.may_stop = asyncio.Event(), asyncio.Event()

    async def process(self, attempt: HeldAttempt) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if attempt.job.place == 0:
                self.stopping.set()
                await self.may_stop.wait()


async def drawing_two(queue: JobQueue) -> tuple[Slow, JobRow, JobRow]:
    worker = Slow(queue)
    slow, other = queue.put([ORDER] * 2, Terms())
    for job in worker.attempts.claim(limit=2):
        worker.start(job)
    await asyncio.sleep(0)  # each begins
    return worker, slow, other


def test_a_job_that_is_slow_to_stop_does_not_keep_the_others_from_being_renewed(queue: JobQueue, clock: Clock) -> None:
    async def use() -> None:
        worker, slow, other = await drawing_two(queue)
        queue.cancel(slow.id)
        renewing = asyncio.create_task(worker.renew())
        await wait_in_loop_until(worker.stopping.is_set)
        clock.now += LEASE_S + 1
        assert renewing.done()
        await worker.renew()
        assert Attempts(queue).recover([]) == []
        assert queue.get(slow.id).state == "running", "it has not stopped yet"
        worker.may_stop.set()
        await wait_in_loop_until(lambda: queue.get(slow.id).state == "cancelled")
        assert queue.get(other.id).state == "running"
        worker.held[other.id].task.cancel()

    asyncio.run(use())


def test_jobs_are_put_back_although_one_is_slow_to_stop(queue: JobQueue) -> None:
    async def use() -> None:
        worker, slow, other = await drawing_two(queue)
        draining = asyncio.create_task(worker.drain())
        await wait_in_loop_until(lambda: queue.get(other.id).state == "queued")
        assert queue.get(slow.id).state == "running"
        worker.may_stop.set()
        await draining
        assert queue.get(slow.id).state == "queued"

    asyncio.run(use())


def test_no_worker_counts_as_dead_because_the_database_was_away(queue: JobQueue, clock: Clock) -> None:
    async def use() -> None:
        worker = Slow(queue)
        [job] = queue.put([ORDER], Terms())
        Attempts(queue).claim(limit=1)
        await worker.recover_jobs()
        away_s = LEASE_S + 1
        clock.now += away_s
        worker.recovering.last_success -= away_s  # as long as no look of its own succeeded
        await worker.recover_jobs()
        assert queue.get(job.id).state == "running", "its worker could not write either"
        worker.recovering.last_success = time.monotonic()
        worker.others_visible_since -= away_s
        await worker.recover_jobs()
        assert queue.get(job.id).state == "queued", "and now it could"

    asyncio.run(use())
