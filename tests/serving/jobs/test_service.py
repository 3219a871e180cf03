"""Who waits for a job can stop waiting at any moment."""

import asyncio
from typing import cast

from tests.patience import PATIENCE_S, wait_in_loop_until

from safelight.database.connect import Database
from safelight.events import Stepped
from safelight.serving.jobs.live import JobListeners
from safelight.serving.jobs.queue import JobQueue, NewJob, Terms
from safelight.serving.jobs.service import JobService
from safelight.serving.jobs.worker import JobWorker
from safelight.studio import Studio


def test_a_wait_cancelled_as_an_event_arrives_ends(database: Database) -> None:
    async def use() -> None:
        queue, live = JobQueue(database), JobListeners()
        # Neither the studio nor the worker has a part in waiting.
        job_service = JobService(queue, cast(Studio, None), cast(JobWorker, None), live, max_queued=1)
        [job] = queue.put([NewJob(spec={"prompt": "a red apple"}, encoding={})], Terms())
        waiting = asyncio.create_task(job_service.wait([job]))
        await wait_in_loop_until(lambda: live.listeners[job.id])
        live.publish(job.id, Stepped(job_id=job.id, step=1, total_steps=2, batch_rows=1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=PATIENCE_S)
        assert waiting.cancelled()

    asyncio.run(use())
