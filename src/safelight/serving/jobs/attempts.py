"""The operations of a worker on the queue: claim jobs, send heartbeats, end jobs or put them back.

An attempt is one claim of one job: the job's id and its count of attempts. Every write names it, so a worker
that was presumed dead and comes back changes nothing, whoever has the job by then, itself included.

A worker is alive as long as its heartbeats arrive. When it dies, the jobs that it was drawing are suspect: each is
drawn alone from then on, so a job that kills its process again takes no other job with it.
"""

import os
import secrets
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import and_, delete, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from safelight.database.upsert import insert_into
from safelight.serving.jobs.holders import hold
from safelight.serving.jobs.queue import JobQueue, lock_job
from safelight.serving.jobs.tables import TRAINING, JobRow, WorkerRow

LEASE_S = 20.0
"""Without a heartbeat for this long, a worker counts as dead."""
MAX_CRASHES = 5
"""A job fails after this many processes died while they drew nothing else."""
MAX_ATTEMPTS = 20
"""After this many attempts a job whose process died is suspect, whether or not it had begun to draw."""
MAX_DELAY_S = 60.0
"""The longest delay before a next attempt: if a job's time is further away, the clock was set back."""
FORGET_WORKERS_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """The progress of an attempt."""

    step: int = 0
    total_steps: int = 0
    compute_s: float = 0.0
    """Network seconds of this attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The answer to a heartbeat: the jobs that the worker has to stop."""

    cancelled: Collection[str] = ()
    """Their cancellation was requested; this worker still has to end them."""
    lost: Collection[str] = ()
    """Another attempt has them, or they have ended."""


class Attempts:
    """The attempts of one worker, identified by a random token."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.token = secrets.token_hex(16)
        self.began = queue.clock()
        self.last_beats: dict[str, float] = {}
        """Heartbeat times of all workers at the last `recover`, by token."""

    def heartbeat(self, *, patience_s: float) -> None:
        """Write a heartbeat, which proves that the database accepts writes.

        Raises:
            StorageFailed: it does not.
        """
        self.queue.database.write(self.write_heartbeat, patience_s=patience_s)

    def write_heartbeat(self, session: Session) -> None:
        host = socket.gethostname()[:64]
        now = self.queue.clock()
        first = insert_into(session, WorkerRow).values(
            token=self.token, host=host, pid=os.getpid(), began=self.began, beat=now
        )
        session.execute(first.on_conflict_do_update(index_elements=[WorkerRow.token], set_={"beat": now}))

    def claim(self, *, limit: int, busy: bool = False, training: bool = False) -> list[JobRow]:
        """Claim up to `limit` jobs: highest priority first, then the tenant with fewest running jobs, then the oldest.

        A suspect is claimed alone; a worker that is `busy` drawing leaves it, and all jobs after it, in the queue. One
        that is `training` leaves further runs to others: here they would only wait.
        """
        if limit <= 0:
            return []
        return self.queue.change(lambda session: self.claim_in(session, limit, busy, training))

    def claim_in(self, session: Session, limit: int, busy: bool, training: bool) -> list[JobRow]:
        now = self.queue.clock()
        other = aliased(JobRow)
        num_running = (
            select(func.count())
            .where(other.state == "running", other.tenant == JobRow.tenant)
            .correlate(JobRow)
            .scalar_subquery()
        )
        first = (
            select(JobRow)
            .where(
                JobRow.state == "queued",
                or_(JobRow.not_before <= now, JobRow.not_before > now + MAX_DELAY_S),
                or_(JobRow.expires.is_(None), JobRow.expires >= now, JobRow.started.is_not(None)),
            )
            .order_by(JobRow.priority.desc(), num_running, JobRow.not_before, JobRow.created)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        drawn = first.where(func.coalesce(JobRow.spec["task"].as_string(), "") != TRAINING)
        taken: list[JobRow] = []
        while len(taken) < limit and (job := session.scalar(drawn if training else first)):
            if job.suspect and (busy or taken):
                break
            if not taken:
                self.write_heartbeat(session)
            job.state, job.worker, job.started = "running", self.token, now
            job.attempts, job.drawing = job.attempts + 1, False
            job.step, job.total_steps = 0, 0
            self.queue.add_event(session, job, "running", {"attempt": job.attempts})
            taken.append(job)
            training = training or is_training(job)
            if job.suspect:
                break
        return taken

    def begin(self, job: JobRow) -> bool:
        """Record that drawing begins. This and the methods below return False if the attempt no longer has the job."""

        def work(_session: Session, row: JobRow) -> None:
            row.drawing = True

        return self.change(job, JobProgress(), work)

    def renew(self, running: Mapping[str, tuple[JobRow, JobProgress]]) -> Dropped:
        """Write a heartbeat, and the progress of the jobs that this worker runs, by id."""
        return self.queue.change(lambda session: self.renew_in(session, running)) if running else Dropped()

    def renew_in(self, session: Session, running: Mapping[str, tuple[JobRow, JobProgress]]) -> Dropped:
        self.write_heartbeat(session)
        query = select(JobRow).where(JobRow.id.in_(running), JobRow.state == "running").order_by(JobRow.id)
        rows = {row.id: row for row in session.scalars(query.with_for_update())}
        ours = {job_id for job_id, row in rows.items() if row.attempts == running[job_id][0].attempts}
        for job_id in ours:
            write_progress(rows[job_id], *running[job_id])
        return Dropped(cancelled={job_id for job_id in ours if rows[job_id].cancel_asked}, lost=set(running) - ours)

    def finish(
        self,
        job: JobRow,
        *,
        asset_id: str | None,
        seconds: float,
        progress: JobProgress | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a job whose picture, or trained model, is stored.

        Args:
            details: further fields of the event.
        """

        def work(session: Session, row: JobRow) -> None:
            row.asset_id, row.seconds, row.step = asset_id, seconds, row.total_steps
            hold(session, [asset_id] if asset_id else [], row.tenant)
            self.queue.end(session, row, "done", {"asset_id": asset_id, "seconds": seconds, **(details or {})})

        return self.change(job, progress, work)

    def fail(self, job: JobRow, error: Mapping[str, Any], progress: JobProgress | None = None) -> bool:
        def work(session: Session, row: JobRow) -> None:
            row.error = dict(error)
            self.queue.end(session, row, "failed", error)

        return self.change(job, progress, work)

    def cancelled(self, job: JobRow, progress: JobProgress | None = None) -> bool:
        """End a job that the worker has stopped because it was cancelled."""
        return self.change(job, progress, lambda session, row: self.queue.end(session, row, "cancelled"))

    def put_back(
        self,
        job: JobRow,
        progress: JobProgress | None = None,
        *,
        delay_s: float = 0.0,
        reason: str,
        suspect: bool = False,
    ) -> bool:
        """Requeue the job for another attempt, at once or later; if it was cancelled meanwhile, end it."""

        def work(session: Session, row: JobRow) -> None:
            row.suspect = row.suspect or suspect
            if row.cancel_asked:
                self.queue.end(session, row, "cancelled")
            else:
                self.queue.requeue(session, row, reason, not_before=self.queue.clock() + delay_s if delay_s else None)

        return self.change(job, progress, work)

    def change(self, job: JobRow, progress: JobProgress | None, work: Callable[[Session, JobRow], None]) -> bool:
        """Apply `work` to the job's row, if it still belongs to this attempt."""

        def ours(session: Session) -> bool:
            row = lock_job(session, JobRow.id == job.id, JobRow.state == "running", JobRow.attempts == job.attempts)
            if row is None:
                return False
            if progress:
                write_progress(row, job, progress)
            work(session, row)
            return True

        return self.queue.change(ours)

    def recover(self, held_ids: Collection[str]) -> list[str]:
        """Requeue the jobs of dead workers, and those of this worker that are not in `held_ids`; returns their ids.

        A worker whose heartbeat has changed since the last call is alive, whatever its clock shows.
        """
        now = self.queue.clock()  # before the wait for the database: others could not write either

        def work(session: Session) -> tuple[list[str], dict[str, float]]:
            lately = WorkerRow.beat.between(now - LEASE_S, now + LEASE_S)
            alive = exists().where(WorkerRow.token == JobRow.worker, lately)
            dropped = and_(JobRow.worker == self.token, JobRow.id.not_in(held_ids), JobRow.started < now - LEASE_S)
            gone = and_(JobRow.worker != self.token, ~alive)
            running = select(JobRow).where(JobRow.state == "running", gone | dropped).order_by(JobRow.worker, JobRow.id)
            lost = list(session.scalars(running.with_for_update(skip_locked=True)))
            beats = {row.token: row.beat for row in session.scalars(select(WorkerRow))}
            beating = {token for token, beat in beats.items() if self.last_beats.get(token, beat) != beat} - {
                self.token
            }
            lost = [job for job in lost if job.worker not in beating]
            for _, jobs in groupby(lost, key=lambda job: job.worker):
                self.mark_suspects(session, list(jobs))
            session.execute(delete(WorkerRow).where(WorkerRow.beat < now - FORGET_WORKERS_S))
            return [job.id for job in lost], beats

        lost, self.last_beats = self.queue.change(work)
        return lost

    def mark_suspects(self, session: Session, jobs: Sequence[JobRow]) -> None:
        """Requeue or end the jobs that one worker left. If it died, the jobs that it was drawing become suspect, or all
        of them if none had begun to draw."""
        died = jobs[0].worker != self.token
        drawn = [job for job in jobs if not is_training(job)]
        none_drawing = not any(job.drawing for job in drawn)
        for job in jobs:
            if job.cancel_asked:
                self.queue.end(session, job, "cancelled")
            elif is_training(job):
                # It runs in a process of its own, so it hardly killed the server.
                self.retry_or_fail(session, job, fatal=job.attempts >= MAX_ATTEMPTS)
            else:
                to_blame = (died and (none_drawing or job.drawing)) or job.attempts >= MAX_ATTEMPTS
                job.crashes += to_blame and job.suspect
                job.suspect = job.suspect or to_blame
                self.retry_or_fail(session, job, fatal=job.crashes >= MAX_CRASHES)

    def retry_or_fail(self, session: Session, job: JobRow, *, fatal: bool) -> None:
        if fatal:
            times = job.attempts if is_training(job) else job.crashes
            message = f"the server died {times} times while it drew this and nothing else"
            if is_training(job):
                message = f"the server died {times} times during this run"
            job.error = {"status": 500, "code": "job_failed", "message": message}
            self.queue.end(session, job, "failed", job.error)
        else:
            # A job that runs alone again goes behind the others.
            self.queue.requeue(
                session, job, "its server stopped", not_before=self.queue.clock() if job.crashes else None
            )

    def unregister(self) -> None:
        """Remove this worker's row; others may recover the jobs that it left running."""
        own_row = delete(WorkerRow).where(WorkerRow.token == self.token)
        self.queue.database.write(lambda session: session.execute(own_row))


def write_progress(row: JobRow, job: JobRow, progress: JobProgress) -> None:
    """Write the progress of the attempt `job` to its row, added to the seconds of earlier attempts."""
    row.step, row.total_steps = progress.step, progress.total_steps
    row.compute_s = job.compute_s + progress.compute_s


def is_training(job: JobRow) -> bool:
    return job.spec.get("task") == TRAINING
