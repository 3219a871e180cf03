"""What a worker does with the line: takes jobs, says that it is alive, ends them or puts them back.

An attempt is one taking of one job: the job's id and its count of attempts. Every write names it, so that a worker
that was thought dead and comes back changes nothing, whoever has the job by then, itself included.

A worker is alive as long as its row says so often enough. Where it dies, the jobs that it was drawing are suspect:
each is drawn alone from then on, and the one that goes on killing its process takes no neighbour along.
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
from safelight.serving.jobs.queue import JobQueue, held
from safelight.serving.jobs.tables import TRAINING, JobRow, WorkerRow

LEASE_S = 20.0
"""A worker that has not said for so long that it is alive is dead to the others."""
MAX_CRASHES = 5
"""A job that so many processes died of, drawing nothing else, is what kills them."""
MAX_ATTEMPTS = 20
"""One that was in hand so often when its process died is suspect, whether or not it was seen to begin."""
MAX_DELAY_S = 60.0
"""No job waits so long for its next attempt: where its time is further away, the clock was put back."""
FORGET_WORKERS_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """How far an attempt is."""

    step: int = 0
    total_steps: int = 0
    compute_s: float = 0.0
    """Network seconds of this attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """What a worker is told when it says that it is alive: which of its jobs it has to let go."""

    cancelled: Collection[str] = ()
    """Somebody wants them stopped; they are still this worker's to end."""
    lost: Collection[str] = ()
    """They are no longer its own."""


class Attempts:
    """Of one worker, by the name that no other has."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.token = secrets.token_hex(16)
        self.began = queue.clock()
        self.seen: dict[str, float] = {}
        """What the others had said at the last look, by token."""

    def beat(self, *, patience_s: float) -> None:
        """Say that this worker is alive, which proves that the database takes what is written.

        Raises:
            StorageFailed: it does not.
        """
        self.queue.database.write(self.sign, patience_s=patience_s)

    def sign(self, session: Session) -> None:
        host = socket.gethostname()[:64]
        now = self.queue.clock()
        first = insert_into(session, WorkerRow).values(
            token=self.token, host=host, pid=os.getpid(), began=self.began, beat=now
        )
        session.execute(first.on_conflict_do_update(index_elements=[WorkerRow.token], set_={"beat": now}))

    def claim(self, *, most: int, busy: bool = False, training: bool = False) -> list[JobRow]:
        """Take up to `most` jobs: of the highest priority, then of whoever has fewest under way, then the oldest.

        A suspect is taken alone; a worker that is `busy` drawing leaves it, and whatever comes after it, in line. One
        that is `training` leaves further runs to others: here they would only wait.
        """
        if most <= 0:
            return []
        return self.queue.change(lambda session: self.take(session, most, busy, training))

    def take(self, session: Session, most: int, busy: bool, training: bool) -> list[JobRow]:
        now = self.queue.clock()
        other = aliased(JobRow)
        under_way = (
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
            .order_by(JobRow.priority.desc(), under_way, JobRow.not_before, JobRow.created)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        drawn = first.where(func.coalesce(JobRow.spec["task"].as_string(), "") != TRAINING)
        taken: list[JobRow] = []
        while len(taken) < most and (job := session.scalar(drawn if training else first)):
            if job.suspect and (busy or taken):
                break
            if not taken:
                self.sign(session)
            job.state, job.worker, job.started = "running", self.token, now
            job.attempts, job.drawing = job.attempts + 1, False
            job.step, job.total_steps = 0, 0
            self.queue.note(session, job, "running", {"attempt": job.attempts})
            taken.append(job)
            training = training or is_training(job)
            if job.suspect:
                break
        return taken

    def begin(self, job: JobRow) -> bool:
        """It is being drawn from now on. False, here as below: the job is no longer this attempt's, and left alone."""

        def work(_session: Session, row: JobRow) -> None:
            row.drawing = True

        return self.change(job, JobProgress(), work)

    def renew(self, hands: Mapping[str, tuple[JobRow, JobProgress]]) -> Dropped:
        """Say that this worker is alive, and how far the jobs in its hands are, by id."""
        return self.queue.change(lambda session: self.keep(session, hands)) if hands else Dropped()

    def keep(self, session: Session, hands: Mapping[str, tuple[JobRow, JobProgress]]) -> Dropped:
        self.sign(session)
        running = select(JobRow).where(JobRow.id.in_(hands), JobRow.state == "running").order_by(JobRow.id)
        rows = {row.id: row for row in session.scalars(running.with_for_update())}
        ours = {job_id for job_id, row in rows.items() if row.attempts == hands[job_id][0].attempts}
        for job_id in ours:
            write(rows[job_id], *hands[job_id])
        return Dropped(cancelled={job_id for job_id in ours if rows[job_id].cancel_asked}, lost=set(hands) - ours)

    def finish(
        self,
        job: JobRow,
        *,
        asset_id: str | None,
        seconds: float,
        progress: JobProgress | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> bool:
        """The picture is stored, or what was trained.

        Args:
            more: what else listeners are told.
        """

        def work(session: Session, row: JobRow) -> None:
            row.asset_id, row.seconds, row.step = asset_id, seconds, row.total_steps
            hold(session, [asset_id] if asset_id else [], row.tenant)
            self.queue.leave(session, row, "done", {"asset_id": asset_id, "seconds": seconds, **(more or {})})

        return self.change(job, progress, work)

    def fail(self, job: JobRow, error: Mapping[str, Any], progress: JobProgress | None = None) -> bool:
        def work(session: Session, row: JobRow) -> None:
            row.error = dict(error)
            self.queue.leave(session, row, "failed", error)

        return self.change(job, progress, work)

    def cancelled(self, job: JobRow, progress: JobProgress | None = None) -> bool:
        """The worker has stopped drawing it because somebody asked."""
        return self.change(job, progress, lambda session, row: self.queue.leave(session, row, "cancelled"))

    def put_back(
        self,
        job: JobRow,
        progress: JobProgress | None = None,
        *,
        delay_s: float = 0.0,
        why: str,
        suspect: bool = False,
    ) -> bool:
        """Let another attempt be made, at once or later; where somebody asked for its end meanwhile, it has ended."""

        def work(session: Session, row: JobRow) -> None:
            row.suspect = row.suspect or suspect
            if row.cancel_asked:
                self.queue.leave(session, row, "cancelled")
            else:
                self.queue.back(session, row, why, not_before=self.queue.clock() + delay_s if delay_s else None)

        return self.change(job, progress, work)

    def change(self, job: JobRow, progress: JobProgress | None, work: Callable[[Session, JobRow], None]) -> bool:
        """Do this to the job's row, if it is still this attempt's."""

        def ours(session: Session) -> bool:
            row = held(session, JobRow.id == job.id, JobRow.state == "running", JobRow.attempts == job.attempts)
            if row is None:
                return False
            if progress:
                write(row, job, progress)
            work(session, row)
            return True

        return self.queue.change(ours)

    def recover(self, in_hand: Collection[str]) -> list[str]:
        """Back into line with jobs whose worker is dead, and with those of its own that it has lost hold of.

        A worker that has said anything since the last look is alive, whatever its clock shows.
        """
        now = self.queue.clock()  # not that of when the database could be had: others could not write until then either

        def work(session: Session) -> tuple[list[str], dict[str, float]]:
            lately = WorkerRow.beat.between(now - LEASE_S, now + LEASE_S)
            alive = exists().where(WorkerRow.token == JobRow.worker, lately)
            dropped = and_(JobRow.worker == self.token, JobRow.id.not_in(in_hand), JobRow.started < now - LEASE_S)
            gone = and_(JobRow.worker != self.token, ~alive)
            running = select(JobRow).where(JobRow.state == "running", gone | dropped).order_by(JobRow.worker, JobRow.id)
            lost = list(session.scalars(running.with_for_update(skip_locked=True)))
            beats = {row.token: row.beat for row in session.scalars(select(WorkerRow))}
            spoke = {token for token, beat in beats.items() if self.seen.get(token, beat) != beat} - {self.token}
            lost = [job for job in lost if job.worker not in spoke]
            for _, jobs in groupby(lost, key=lambda job: job.worker):
                self.blame(session, list(jobs))
            session.execute(delete(WorkerRow).where(WorkerRow.beat < now - FORGET_WORKERS_S))
            return [job.id for job in lost], beats

        lost, self.seen = self.queue.change(work)
        return lost

    def blame(self, session: Session, jobs: Sequence[JobRow]) -> None:
        """Of what one dead worker left, suspect what it was drawing: all of it, where it was not seen to draw. Of what
        this one has lost hold of, nobody has died."""
        died = jobs[0].worker != self.token
        drawn = [job for job in jobs if not is_training(job)]
        unseen = not any(job.drawing for job in drawn)
        for job in jobs:
            if job.cancel_asked:
                self.queue.leave(session, job, "cancelled")
            elif is_training(job):
                # In a process of its own: it is hardly what the server died of.
                self.again(session, job, fatal=job.attempts >= MAX_ATTEMPTS)
            else:
                to_blame = (died and (unseen or job.drawing)) or job.attempts >= MAX_ATTEMPTS
                job.crashes += to_blame and job.suspect
                job.suspect = job.suspect or to_blame
                self.again(session, job, fatal=job.crashes >= MAX_CRASHES)

    def again(self, session: Session, job: JobRow, *, fatal: bool) -> None:
        if fatal:
            times = job.attempts if is_training(job) else job.crashes
            message = f"the server died {times} times while it drew this and nothing else"
            if is_training(job):
                message = f"the server died {times} times during this run"
            job.error = {"status": 500, "code": "job_failed", "message": message}
            self.queue.leave(session, job, "failed", job.error)
        else:
            # What is tried alone once more lets the others go first.
            self.queue.back(session, job, "its server stopped", not_before=self.queue.clock() if job.crashes else None)

    def leave(self) -> None:
        """This worker takes no more; whatever it left running is anybody's."""
        mine = delete(WorkerRow).where(WorkerRow.token == self.token)
        self.queue.database.write(lambda session: session.execute(mine))


def write(row: JobRow, job: JobRow, progress: JobProgress) -> None:
    """How far the attempt at `job` is, in its row, where the seconds of earlier attempts are kept."""
    row.step, row.total_steps = progress.step, progress.total_steps
    row.compute_s = job.compute_s + progress.compute_s


def is_training(job: JobRow) -> bool:
    return job.spec.get("task") == TRAINING
