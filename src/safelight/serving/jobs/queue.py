"""The line of accepted jobs, shared by every process on one database.

    queued -> running -> done | failed
       |         |
       |         +--> queued      its worker died, or could not store the picture yet
       +--> cancelled | expired   (a running job is cancelled by its worker)

A job is running as long as its worker renews the lease. Every change names the state and the worker it starts from,
so a worker that was thought dead and comes back changes nothing, and a job ends once.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import and_, func, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from safelight.database.connect import Database
from safelight.errors import IdempotencyConflict, UnknownJob
from safelight.serving.jobs.tables import ENDED, EventRow, JobRow

T = TypeVar("T")
LEASE_S = 20.0
USUAL_PACE_S = 2.0
LATELY_S = 900.0
"""How long after a request its retry may come."""
MOST_ATTEMPTS = 20
"""A job whose worker dies so often is what kills it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One picture that is asked for."""

    spec: Mapping[str, Any]
    encoding: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the jobs of one request have in common."""

    tenant: str = ""
    priority: int = 0
    idempotency_key: str | None = None
    request_digest: str = ""
    expires: float | None = None
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A job's state has changed, and the change is committed."""

    job: JobRow
    state: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Worker:
    """A name that no other process has, living or dead."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def name(self) -> str:
        return f"{self.host[:64]}:{self.pid}:{self.token}"

    def outlives(self, other: str) -> bool:
        """The other was a process of this machine and is gone."""
        host, pid, token = other.rsplit(":", 2)
        return host == self.host[:64] and token != self.token and (int(pid) == self.pid or not is_alive(int(pid)))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class JobQueue:
    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        hear: Callable[[Change], None] = lambda _change: None,
    ) -> None:
        self.database = database
        self.clock = clock
        self.hear = hear
        """Told of every change made here, in the thread that made it."""

    # Accepting

    def put(self, orders: Sequence[Order], terms: Terms) -> list[JobRow]:
        """Accept all or none; committed when this returns. A retry under the same idempotency key gets the first jobs.

        Raises:
            IdempotencyConflict: the key was used for another request.
        """
        if terms.idempotency_key and (known := self.put_before(terms)):
            return known
        try:
            return self.change(lambda session: self.insert(session, orders, terms))
        except IntegrityError:
            # Two retries at the same moment: the other one was first.
            known = self.put_before(terms)
            assert known, "only the idempotency key is unique among what callers choose"
            return known

    def put_before(self, terms: Terms) -> list[JobRow]:
        query = select(JobRow).where(JobRow.tenant == terms.tenant, JobRow.idempotency_key == terms.idempotency_key)
        jobs = self.database.read(lambda session: list(session.scalars(query.order_by(JobRow.place))))
        if jobs and jobs[0].request_digest != terms.request_digest:
            raise IdempotencyConflict(
                f"the idempotency key {terms.idempotency_key!r} was used for another request; choose a new one"
            )
        return jobs

    def asked_lately(self, terms: Terms) -> list[JobRow]:
        """The jobs of the caller's last equal request, unless they were cancelled or are long ago."""
        same = and_(
            JobRow.tenant == terms.tenant,
            JobRow.request_digest == terms.request_digest,
            JobRow.created > self.clock() - LATELY_S,
            JobRow.state != "cancelled",
        )
        last = select(JobRow.request).where(same).order_by(JobRow.id.desc()).limit(1).scalar_subquery()
        query = select(JobRow).where(JobRow.request == last).order_by(JobRow.place)
        return self.database.read(lambda session: list(session.scalars(query)))

    def insert(self, session: Session, orders: Sequence[Order], terms: Terms) -> list[JobRow]:
        now = self.clock()
        ids = [new_id(now) for _ in orders]
        jobs = [
            JobRow(
                id=job_id,
                request=ids[0],
                place=place,
                tenant=terms.tenant,
                idempotency_key=terms.idempotency_key,
                request_digest=terms.request_digest,
                spec=dict(order.spec),
                encoding=dict(order.encoding),
                priority=terms.priority,
                state="queued",
                # Jobs of one request keep their order.
                created=now + place * 1e-6,
                expires=terms.expires,
                webhook_url=terms.webhook_url,
            )
            for place, (job_id, order) in enumerate(zip(ids, orders, strict=True))
        ]
        session.add_all(jobs)
        session.flush()
        for job in jobs:
            self.note(session, job.id, "queued", {})
        return jobs

    # Looking

    def get(self, job_id: str, *, tenant: str | None = None) -> JobRow:
        """A job; with `tenant`, only one of its own."""
        job = self.database.read(lambda session: session.get(JobRow, job_id))
        if job is None or (tenant is not None and job.tenant != tenant):
            raise UnknownJob(f"no job {job_id!r}; GET /v1/jobs lists those that are known")
        return job

    def get_all(self, job_ids: Sequence[str]) -> list[JobRow]:
        query = select(JobRow).where(JobRow.id.in_(job_ids)).order_by(JobRow.created)
        return self.database.read(lambda session: list(session.scalars(query)))

    def find(
        self, *, tenant: str | None = None, state: str | None = None, before: str | None = None, limit: int = 50
    ) -> list[JobRow]:
        """Newest first; `before` goes on where the last page ended."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        for wanted, column in ((tenant, JobRow.tenant), (state, JobRow.state)):
            if wanted is not None:
                query = query.where(column == wanted)
        if before:
            query = query.where(JobRow.id < before)
        return self.database.read(lambda session: list(session.scalars(query)))

    def may_see(self, tenant: str | None, asset_id: str) -> bool:
        """Whether a job of the tenant (None: of anybody) made the picture."""
        query = select(JobRow.id).where(JobRow.asset_id == asset_id).limit(1)
        if tenant is not None:
            query = query.where(JobRow.tenant == tenant)
        return self.database.read(lambda session: session.scalar(query)) is not None

    def events(self, job_id: str, *, after: int = 0) -> list[EventRow]:
        query = select(EventRow).where(EventRow.job_id == job_id, EventRow.number > after).order_by(EventRow.number)
        return self.database.read(lambda session: list(session.scalars(query)))

    def counts(self) -> dict[str, int]:
        query = select(JobRow.state, func.count()).where(JobRow.state.in_(("queued", "running"))).group_by(JobRow.state)
        found = self.database.read(lambda session: [(state, number) for state, number in session.execute(query)])
        return {"queued": 0, "running": 0} | dict(found)

    def oldest_s(self) -> float:
        """How long the first in line has waited."""
        query = select(func.min(JobRow.created)).where(JobRow.state == "queued")
        first = self.database.read(lambda session: session.scalar(query))
        return 0.0 if first is None else max(0.0, self.clock() - first)

    def pace_s(self) -> float:
        """Seconds between the ends of the last pictures: how soon there is room for one more."""
        query = select(JobRow.finished).where(JobRow.state == "done").order_by(JobRow.finished.desc()).limit(20)
        ends = self.database.read(lambda session: [end for end in session.scalars(query) if end is not None])
        return (ends[0] - ends[-1]) / (len(ends) - 1) if len(ends) > 1 else USUAL_PACE_S

    def position(self, job: JobRow) -> int:
        """Jobs before it in line."""
        query = select(func.count()).where(
            JobRow.state == "queued",
            or_(JobRow.priority > job.priority, and_(JobRow.priority == job.priority, JobRow.created < job.created)),
        )
        return self.database.read(lambda session: session.scalar(query)) or 0

    def used(self, tenant: str, *, since: float) -> tuple[int, float]:
        """Pictures asked for since then, and the network seconds of those that were drawn."""
        query = select(func.count(), func.coalesce(func.sum(JobRow.compute_s), 0.0)).where(
            JobRow.tenant == tenant, JobRow.created >= since, JobRow.state.in_(("queued", "running", "done"))
        )
        count, compute_s = self.database.read(lambda session: session.execute(query).one())
        return count, float(compute_s)

    # Working

    def claim(self, worker: Worker, *, most: int) -> list[JobRow]:
        """Take up to `most` jobs: of the highest priority, then of whoever has fewest under way, then the oldest."""
        return self.change(lambda session: self.take(session, worker, most)) if most > 0 else []

    def take(self, session: Session, worker: Worker, most: int) -> list[JobRow]:
        now = self.clock()
        other = aliased(JobRow)
        under_way = (
            select(func.count())
            .where(other.state == "running", other.tenant == JobRow.tenant)
            .correlate(JobRow)
            .scalar_subquery()
        )
        first = (
            select(JobRow.id)
            .where(JobRow.state == "queued", JobRow.not_before <= now)
            .order_by(JobRow.priority.desc(), under_way, JobRow.created)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        # SQLite drops SKIP LOCKED, and its one writer needs none; PostgreSQL needs the state asked for twice.
        claim = (
            update(JobRow)
            .where(JobRow.id == first, JobRow.state == "queued")
            .values(
                state="running",
                worker=worker.name,
                lease_until=now + LEASE_S,
                attempts=JobRow.attempts + 1,
                started=now,
            )
            .returning(JobRow)
            .execution_options(synchronize_session=False)
        )
        taken: list[JobRow] = []
        while len(taken) < most and (job := session.scalars(claim).first()):
            self.note(session, job.id, "running", {"attempt": job.attempts})
            taken.append(job)
        return taken

    def renew(self, worker: Worker, progress: Mapping[str, tuple[int, int]]) -> set[str]:
        """Keep the leases of these jobs (id -> step, total steps); returns those that are to be dropped, because
        somebody cancelled them or another worker has them."""
        return self.change(lambda session: self.keep(session, worker, progress)) if progress else set()

    def keep(self, session: Session, worker: Worker, progress: Mapping[str, tuple[int, int]]) -> set[str]:
        kept: set[str] = set()
        for job_id, (step, total_steps) in progress.items():
            ours = and_(JobRow.id == job_id, JobRow.worker == worker.name, JobRow.state == "running")
            values = {"lease_until": self.clock() + LEASE_S, "step": step, "total_steps": total_steps}
            asked = session.execute(update(JobRow).where(ours).values(**values).returning(JobRow.cancel_asked)).first()
            if asked is not None and not asked.cancel_asked:
                kept.add(job_id)
        return set(progress) - kept

    def finish(
        self,
        job: JobRow,
        worker: Worker,
        *,
        asset_id: str | None,
        seconds: float,
        compute_s: float,
        total_steps: int = 0,
        more: Mapping[str, Any] | None = None,
    ) -> bool:
        """The picture is stored, or what was trained. False if the job was no longer this worker's to finish.

        Args:
            more: what else listeners are told.
        """
        values = {"asset_id": asset_id, "seconds": seconds, "compute_s": compute_s}
        # A quick job ends before a heartbeat has written how many steps it has.
        values |= {"step": total_steps, "total_steps": total_steps}
        return self.end(job, worker, "done", values, {"asset_id": asset_id, "seconds": seconds, **(more or {})})

    def fail(self, job: JobRow, worker: Worker, error: Mapping[str, Any]) -> bool:
        return self.end(job, worker, "failed", {"error": dict(error)}, dict(error))

    def cancelled(self, job: JobRow, worker: Worker) -> bool:
        """The worker has stopped drawing it."""
        return self.end(job, worker, "cancelled", {}, {})

    def end(self, job: JobRow, worker: Worker, state: str, values: dict[str, Any], data: dict[str, Any]) -> bool:
        def work(session: Session) -> bool:
            return self.leave(session, job.id, state, values, data, worker.name)

        return self.change(work)

    def put_back(self, job: JobRow, worker: Worker, *, delay_s: float = 0.0, why: str) -> bool:
        """Let another attempt be made, at once or later."""

        def work(session: Session) -> bool:
            ours = and_(JobRow.id == job.id, JobRow.worker == worker.name, JobRow.state == "running")
            values = {"state": "queued", "worker": "", "not_before": self.clock() + delay_s, "step": 0}
            back = session.execute(update(JobRow).where(ours).values(**values).returning(JobRow.id)).first()
            if back:
                self.note(session, job.id, "queued", {"why": why})
            return back is not None

        return self.change(work)

    # Cancelling, expiring, recovering

    def cancel(self, job_id: str) -> JobRow:
        """At once if it waits, at its next step if it runs; a job that has ended stays as it ended."""

        def work(session: Session) -> None:
            if not self.leave(session, job_id, "cancelled", {}, {}, None):
                running = and_(JobRow.id == job_id, JobRow.state == "running")
                session.execute(update(JobRow).where(running).values(cancel_asked=True))

        self.change(work)
        return self.get(job_id)

    def expire(self) -> list[str]:
        """Jobs whose time was up before they began."""
        late = select(JobRow.id).where(JobRow.state == "queued", JobRow.expires < self.clock())

        def work(session: Session) -> list[str]:
            ids = list(session.scalars(late))
            return [job_id for job_id in ids if self.leave(session, job_id, "expired", {}, {}, None)]

        return self.change(work)

    def recover(self, worker: Worker) -> list[str]:
        """Back into line with jobs whose worker is gone: its lease ran out, or its process is dead on this machine."""

        def work(session: Session) -> list[str]:
            running = list(session.scalars(select(JobRow).where(JobRow.state == "running")))
            now = self.clock()
            lost = [
                job
                for job in running
                if job.worker != worker.name and (job.lease_until < now or worker.outlives(job.worker))
            ]
            for job in lost:
                held = and_(JobRow.id == job.id, JobRow.worker == job.worker, JobRow.state == "running")
                if job.cancel_asked:
                    self.leave(session, job.id, "cancelled", {}, {}, job.worker)
                elif job.attempts >= MOST_ATTEMPTS:
                    message = f"the server died {job.attempts} times while drawing this"
                    error = {"status": 500, "code": "job_failed", "message": message}
                    self.leave(session, job.id, "failed", {"error": error}, error, job.worker)
                else:
                    session.execute(update(JobRow).where(held).values(state="queued", worker="", step=0))
                    self.note(session, job.id, "queued", {"why": "its server stopped"})
            return [job.id for job in lost]

        return self.change(work)

    def leave(
        self,
        session: Session,
        job_id: str,
        state: str,
        values: dict[str, Any],
        data: dict[str, Any],
        worker: str | None,
    ) -> bool:
        """The last change of a job: from `running` by that worker, or from `queued` where there is none."""
        assert state in ENDED
        held = JobRow.state == "queued" if worker is None else and_(JobRow.state == "running", JobRow.worker == worker)
        ended = {"state": state, "finished": self.clock(), "worker": "", **values}
        change = update(JobRow).where(JobRow.id == job_id, held).values(**ended).returning(JobRow.webhook_url)
        left = session.execute(change).first()
        if left is None:
            return False
        if left.webhook_url:
            session.execute(
                update(JobRow).where(JobRow.id == job_id).values(webhook_state="due", webhook_due=self.clock())
            )
        self.note(session, job_id, state, data)
        return True

    def change(self, work: Callable[[Session], T]) -> T:
        """In a transaction; what it noted is heard once it is committed."""
        noted: list[Change] = []

        def noting(session: Session) -> T:
            noted.clear()  # of an attempt that had to be made again
            session.info["noted"] = noted
            return work(session)

        result = self.database.write(noting)
        for change in noted:
            self.hear(change)
        return result

    def note(self, session: Session, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        last = session.scalar(select(func.max(EventRow.number)).where(EventRow.job_id == job_id)) or 0
        session.add(EventRow(job_id=job_id, number=last + 1, kind=kind, at=self.clock(), data=dict(data)))
        session.flush()
        job = session.get(JobRow, job_id)
        assert job is not None, "events are noted of jobs that exist"
        session.info["noted"].append(Change(job=job, state=kind, data=data))

    def ready(self) -> None:
        """Raises StorageFailed unless the database answers."""
        self.database.read(lambda session: session.execute(text("SELECT 1")))


def new_id(now: float) -> str:
    """32 hex digits: the milliseconds, then chance."""
    return f"{int(now * 1000):012x}{secrets.token_hex(10)}"
