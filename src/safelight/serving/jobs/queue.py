"""The line of accepted jobs, shared by every process on one database: what callers do with it.

    queued -> running -> done | failed
       |         |
       |         +--> queued      its worker died, or could not store the picture yet
       +--> cancelled | expired   (a running job is cancelled by its worker)

What workers do with it is in `attempts`. Every change names the state it starts from, and is told where it happened.
"""

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, and_, func, or_, select, text, tuple_
from sqlalchemy.orm import Session

from safelight.database.connect import Database
from safelight.errors import IdempotencyConflict, UnknownJob
from safelight.serving.jobs import usage
from safelight.serving.jobs.holders import hold
from safelight.serving.jobs.tables import ENDED, EventRow, JobRow
from safelight.serving.jobs.usage import Limits

log = logging.getLogger(__name__)

T = TypeVar("T")
LATELY_S = 900.0
"""How long after a request its retry may come."""
ACCEPTING = 5_081_958
"""Any number, the same in every process: PostgreSQL's name for "somebody is accepting jobs"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """One picture that is asked for."""

    spec: Mapping[str, Any]
    encoding: Mapping[str, Any]
    pictures: Collection[str] = ()
    """The ids of those that the spec names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the jobs of one request have in common."""

    tenant: str = ""
    priority: int = 0
    idempotency_key: str | None = None
    request_digest: str = ""
    retried: bool = False
    """An equal request of a moment ago is this one."""
    expires: float | None = None
    webhook_url: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A job's state has changed, and the change is committed."""

    job: JobRow
    state: str
    data: Mapping[str, Any]


class JobQueue:
    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        on_event: Callable[[Change], None] = lambda _change: None,
    ) -> None:
        self.database = database
        self.clock = clock
        self.on_event = on_event
        """Told of every change made here, in the thread that made it."""

    # Accepting

    def put(self, orders: Sequence[NewJob], terms: Terms) -> list[JobRow]:
        """Accept all or none; committed when this returns. A retry of a request gets the first one's jobs.

        Raises:
            IdempotencyConflict: the key was used for another request.
            InvalidRequest, TooManyRequests: the limits leave no room.
        """

        def work(session: Session) -> list[JobRow]:
            # One at a time, or two would find the same room. SQLite has one writer anyway.
            if session.get_bind().dialect.name == "postgresql":
                session.execute(text(f"SELECT pg_advisory_xact_lock({ACCEPTING})"))
            if known := asked_before(session, terms, self.clock()):
                return known
            usage.require_room(session, terms.limits, terms.tenant, len(orders), now=self.clock())
            return self.insert(session, orders, terms)

        return self.change(work)

    def put_before(self, terms: Terms) -> list[JobRow]:
        """The jobs that this request has already, if it is a retry.

        Raises:
            IdempotencyConflict: the key was used for another request.
        """
        return self.database.read(lambda session: asked_before(session, terms, self.clock()))

    def require_room(self, terms: Terms, num_pictures: int) -> None:
        """Refuse early what `put` would refuse: before anything is made ready for it."""
        self.database.read(
            lambda session: usage.require_room(session, terms.limits, terms.tenant, num_pictures, now=self.clock())
        )

    def insert(self, session: Session, orders: Sequence[NewJob], terms: Terms) -> list[JobRow]:
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
                not_before=now,
                expires=terms.expires,
                webhook_url=terms.webhook_url,
            )
            for place, (job_id, order) in enumerate(zip(ids, orders, strict=True))
        ]
        session.add_all(jobs)
        session.flush()
        hold(session, {asset_id for order in orders for asset_id in order.pictures}, terms.tenant)
        for job in jobs:
            usage.expect(session, job)
            self.note(session, job, "queued", {})
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

    def position(self, job: JobRow) -> int:
        """Jobs before it in line."""
        earlier = tuple_(JobRow.not_before, JobRow.created) < tuple_(job.not_before, job.created)
        before = or_(JobRow.priority > job.priority, and_(JobRow.priority == job.priority, earlier))
        query = select(func.count()).where(JobRow.state == "queued", before)
        return self.database.read(lambda session: session.scalar(query)) or 0

    def used(self, tenant: str, *, since: float) -> tuple[int, float]:
        """Pictures and network seconds of what was asked for since then."""
        return self.database.read(lambda session: usage.used(session, tenant, since=since))

    # Changing

    def cancel(self, job_id: str) -> JobRow:
        """At once if it waits, at its next step if it runs; a job that has ended stays as it ended."""

        def work(session: Session) -> None:
            job = held(session, JobRow.id == job_id, JobRow.state.in_(("queued", "running")))
            if job is not None and job.state == "queued":
                self.leave(session, job, "cancelled")
            elif job is not None:
                job.cancel_asked = True

        self.change(work)
        return self.get(job_id)

    def expire(self) -> list[str]:
        """Jobs whose time was up before they began."""

        def work(session: Session) -> list[str]:
            waiting = JobRow.state == "queued", JobRow.started.is_(None)
            late = select(JobRow).where(*waiting, JobRow.expires < self.clock())
            jobs = list(session.scalars(late.with_for_update(skip_locked=True)))
            for job in jobs:
                self.leave(session, job, "expired")
            return [job.id for job in jobs]

        return self.change(work)

    def leave(self, session: Session, job: JobRow, state: str, data: Mapping[str, Any] | None = None) -> None:
        """The last change of a job, whose row the transaction holds."""
        assert state in ENDED
        job.state, job.finished, job.worker, job.drawing = state, self.clock(), "", False
        if job.webhook_url:
            job.webhook_state, job.webhook_due = "due", self.clock()
        usage.count(session, job, state)
        self.note(session, job, state, data or {})

    def back(self, session: Session, job: JobRow, why: str, *, not_before: float | None = None) -> None:
        """Into line again with a job whose row the transaction holds: to its place, or to that of this time."""
        job.state, job.worker, job.drawing, job.step = "queued", "", False, 0
        if not_before is not None:
            job.not_before = not_before
        usage.count(session, job, "queued")
        self.note(session, job, "queued", {"why": why})

    def change(self, work: Callable[[Session], T]) -> T:
        """In a transaction; what it noted is heard once it is committed."""
        noted: list[Change] = []

        def noting(session: Session) -> T:
            noted.clear()  # of an attempt that had to be made again
            session.info["noted"] = noted
            return work(session)

        result = self.database.write(noting)
        for change in noted:
            try:
                self.on_event(change)
            except Exception:  # what is committed is true: whoever asked for it must not believe that it failed
                log.exception("job %s is %s, which somebody could not on_event", change.job.id, change.state)
        return result

    def note(self, session: Session, job: JobRow, kind: str, data: Mapping[str, Any]) -> None:
        """An event of a job whose row the transaction holds."""
        last = session.scalar(select(func.max(EventRow.number)).where(EventRow.job_id == job.id)) or 0
        session.add(EventRow(job_id=job.id, number=last + 1, kind=kind, at=self.clock(), data=dict(data)))
        session.flush()
        session.info["noted"].append(Change(job=job, state=kind, data=data))


def new_id(now: float) -> str:
    """32 hex digits: the milliseconds, then chance."""
    return f"{int(now * 1000):012x}{secrets.token_hex(10)}"


def held(session: Session, *where: ColumnElement[bool]) -> JobRow | None:
    """The job of which this is true, which nobody else changes before the transaction ends."""
    return session.scalar(select(JobRow).where(*where).with_for_update())


def asked_before(session: Session, terms: Terms, now: float) -> list[JobRow]:
    """The jobs of the request that this one repeats: by its idempotency key, or because it was said so.

    A request that says that it is a retry, without a key, is the caller's last equal one, unless that was cancelled or
    is long ago.
    """
    if terms.idempotency_key:
        query = select(JobRow).where(JobRow.tenant == terms.tenant, JobRow.idempotency_key == terms.idempotency_key)
        jobs = list(session.scalars(query.order_by(JobRow.place)))
        if jobs and jobs[0].request_digest != terms.request_digest:
            raise IdempotencyConflict(
                f"the idempotency key {terms.idempotency_key!r} was used for another request; choose a new one"
            )
        if jobs:
            return jobs
    if not terms.retried:
        return []
    same = and_(
        JobRow.tenant == terms.tenant,
        JobRow.request_digest == terms.request_digest,
        JobRow.created > now - LATELY_S,
        JobRow.state != "cancelled",
        JobRow.cancel_asked.is_(False),
    )
    last = select(JobRow.request).where(same).order_by(JobRow.id.desc()).limit(1).scalar_subquery()
    return list(session.scalars(select(JobRow).where(JobRow.request == last).order_by(JobRow.place)))
