"""Readiness: tests by a write whether a new job would be accepted and run now."""

import asyncio
import shutil
from pathlib import Path

from safelight.errors import NotReady, StorageFailed
from safelight.serving.jobs.worker import JobWorker

PROBE_S = 0.8
"""How long the probe may take; load balancers give up after a second or more."""
MIN_FREE_BYTES = 64 * 2**20
"""With less free disk space, storing a picture may fail."""


class Readiness:
    """Tests that a job could be accepted and run now; one probe at a time, shared by concurrent callers."""

    def __init__(self, worker: JobWorker, home: Path) -> None:
        self.worker = worker
        self.home = home
        self.probe: asyncio.Task[None] | None = None

    async def require(self) -> None:
        """
        Raises:
            NotReady: with the reason.
        """
        if self.probe is None or self.probe.done():
            self.probe = asyncio.create_task(self.worker.queue.database.run(self.check_write))
        done, _ = await asyncio.wait({self.probe}, timeout=PROBE_S)
        if not done:
            raise NotReady(f"the database or the disk has not answered within {PROBE_S:g} s")
        self.probe.result()
        if problem := self.worker.problem():
            raise NotReady(problem)

    def check_write(self) -> None:
        """Check the disk and write to the database, as accepting a job would."""
        if shutil.disk_usage(self.home).free < MIN_FREE_BYTES:
            raise NotReady("the disk is full")
        try:
            self.worker.attempts.heartbeat(patience_s=PROBE_S / 2)
        except StorageFailed as error:
            raise NotReady(str(error)) from error
