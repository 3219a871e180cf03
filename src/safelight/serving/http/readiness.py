"""Whether a job that is asked for now would be accepted and drawn: proved, not supposed."""

import asyncio
import shutil
from pathlib import Path

from safelight.errors import NotReady, StorageFailed
from safelight.serving.jobs.worker import JobWorker

PROOF_S = 0.8
"""How long the proof may take; load balancers give up after a second or more."""
MIN_FREE_BYTES = 64 * 2**20
"""Below it, a picture may not be kept."""


class Readiness:
    """Proves that a job could be accepted and taken now. One proof at a time, however many ask."""

    def __init__(self, worker: JobWorker, home: Path) -> None:
        self.worker = worker
        self.home = home
        self.proof: asyncio.Task[None] | None = None

    async def require(self) -> None:
        """
        Raises:
            NotReady: and why.
        """
        if self.proof is None or self.proof.done():
            self.proof = asyncio.create_task(self.worker.queue.database.run(self.prove))
        done, _ = await asyncio.wait({self.proof}, timeout=PROOF_S)
        if not done:
            raise NotReady(f"the database or the disk has not answered within {PROOF_S:g} s")
        self.proof.result()
        if trouble := self.worker.problem():
            raise NotReady(trouble)

    def prove(self) -> None:
        """That what is accepted can be kept: something is written, as a job would be."""
        if shutil.disk_usage(self.home).free < MIN_FREE_BYTES:
            raise NotReady("the disk is full")
        try:
            self.worker.attempts.heartbeat(patience_s=PROOF_S / 2)
        except StorageFailed as error:
            raise NotReady(str(error)) from error
