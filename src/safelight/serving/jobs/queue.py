"""The queue of accepted jobs, shared by all processes on one database: the operations of callers.

    queued -> running -> done | failed
       |         |
       |         +--> queued      its worker died, or could not store the picture yet
       +--> cancelled | expired   (a running job is cancelled by its worker)

`attempts` has the operations of workers. Every change checks the state it starts from, and is reported to `on_event`.
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
RETRY_WINDOW_S = 900.0
"""How long after a request an equal one marked as a retry still counts as its retry."""
ACCEPTING = 5_081_958
"""Key of the PostgreSQL advisory lock held while accepting jobs: any number, the same in every process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """One requested picture or training run."""

    spec: Mapping[str, Any]
    encoding: Mapping[str, Any]
    pictures: Collection[str] = ()
    """The ids of the stored pictures that the spec names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The settings that all jobs of one request share."""

    tenant: str = ""
    priority: int = 0
    idempotency_key: str | None = None
    request_digest: str = ""
    retried: bool = False
    """The client repeats a request: return the jobs of its last equal one."""
    expires: float | None = None
    webhook_url: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A committed change of a job's state."""

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
        """Called after every committed change, in the thread that made it."""

    # Accepting

    def put(self, new_jobs: Sequence[NewJob], terms: Terms) -> list[JobRow]:
        """Accept all jobs or none; committed when this returns. A retry of a request gets the jobs of the first one.

        Raises:
            IdempotencyConflict: the key was used for another request.
            InvalidRequest, TooManyRequests: a limit would be exceeded.
        """

        def work(session: Session) -> list[JobRow]:
            # One at a time, or two requests would use the same free capacity. SQLite has one writer anyway.
            if session.get_bind().dialect.name == "postgresql":
                session.execute(text(f"SELECT pg_advisory_xact_lock({ACCEPTING})"))
            if known := previous_jobs(session, terms, self.clock()):
                return known
            usage.require_capacity(session, terms.limits, terms.tenant, len(new_jobs), now=self.clock())
            return self.insert(session, new_jobs, terms)

        return self.change(work)

    def find_previous(self, terms: Terms) -> list[JobRow]:
        """The jobs that this request already has, if it is a retry; otherwise empty.

        Raises:
            IdempotencyConflict: the key was used for another request.
        """
        return self.database.read(lambda session: previous_jobs(session, terms, self.clock()))

    def require_capacity(self, terms: Terms, num_pictures: int) -> None:
        """Check the limits that `put` checks, before the work of completing the specs."""
        self.database.read(
            lambda session: usage.require_capacity(session, terms.limits, terms.tenant, num_pictures, now=self.clock())
        )

    def insert(self, session: Session, new_jobs: Sequence[NewJob], terms: Terms) -> list[JobRow]:
        now = self.clock()
        ids = [new_id(now) for _ in new_jobs]
        jobs = [
            JobRow(
                id=job_id,
                request=ids[0],
                place=place,
                tenant=terms.tenant,
                idempotency_key=terms.idempotency_key,
                request_digest=terms.request_digest,
                spec=dict(new_job.spec),
                encoding=dict(new_job.encoding),
                priority=terms.priority,
                state="queued",
                # Jobs of one request keep their new_job.
                created=now + place * 1e-6,
                not_before=now,
                expires=terms.expires,
                webhook_url=terms.webhook_url,
            )
            for place, (job_id, new_job) in enumerate(zip(ids, new_jobs, strict=True))
        ]
        session.add_all(jobs)
        session.flush()
        hold(session, {asset_id for new_job in new_jobs for asset_id in new_job.pictures}, terms.tenant)
        for job in jobs:
            usage.add_usage(session, job)
            self.add_event(session, job, "queued", {})
        return jobs

    # Reading

    def get(self, job_id: str, *, tenant: str | None = None) -> JobRow:
        """Return a job; with `tenant`, only one of this tenant.

        Raises:
            UnknownJob: it does not exist, or belongs to another tenant.
        """
        job = self.database.read(lambda session: session.get(JobRow, job_id))
        if job is None or (tenant is not None and job.tenant != tenant):
            raise UnknownJob(f"no job {job_id!r}; GET /v1/jobs lists the known ones")
        return job

    def get_all(self, job_ids: Sequence[str]) -> list[JobRow]:
        query = select(JobRow).where(JobRow.id.in_(job_ids)).order_by(JobRow.created)
        return self.database.read(lambda session: list(session.scalars(query)))

    def find(
        self, *, tenant: str | None = None, state: str | None = None, before: str | None = None, limit: int = 50
    ) -> list[JobRow]:
        """Jobs, newest first; `before` is the id of the last job of the previous page."""
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
        """Seconds that the oldest queued job has waited; 0 if there is none."""
        query = select(func.min(JobRow.created)).where(JobRow.state == "queued")
        first = self.database.read(lambda session: session.scalar(query))
        return 0.0 if first is None else max(0.0, self.clock() - first)

    def position(self, job: JobRow) -> int:
        """Number of queued jobs that come before this one."""
        earlier = tuple_(JobRow.not_before, JobRow.created) < tuple_(job.not_before, job.created)
        before = or_(JobRow.priority > job.priority, and_(JobRow.priority == job.priority, earlier))
        query = select(func.count()).where(JobRow.state == "queued", before)
        return self.database.read(lambda session: session.scalar(query)) or 0

    def used(self, tenant: str, *, since: float) -> tuple[int, float]:
        """Pictures and network seconds of the jobs that the tenant requested since then."""
        return self.database.read(lambda session: usage.used(session, tenant, since=since))

    # Changing

    def cancel(self, job_id: str) -> JobRow:
        """Cancel a queued job at once, a running one at its next step; a job that has ended does not change."""

        def work(session: Session) -> None:
            job = lock_job(session, JobRow.id == job_id, JobRow.state.in_(("queued", "running")))
            if job is not None and job.state == "queued":
                self.end(session, job, "cancelled")
            elif job is not None:
                job.cancel_asked = True

        self.change(work)
        return self.get(job_id)

    def expire(self) -> list[str]:
        """End the jobs that expired before they started; returns their ids."""

        def work(session: Session) -> list[str]:
            waiting = JobRow.state == "queued", JobRow.started.is_(None)
            late = select(JobRow).where(*waiting, JobRow.expires < self.clock())
            jobs = list(session.scalars(late.with_for_update(skip_locked=True)))
            for job in jobs:
                self.end(session, job, "expired")
            return [job.id for job in jobs]

        return self.change(work)

    def end(self, session: Session, job: JobRow, state: str, data: Mapping[str, Any] | None = None) -> None:
        """End a job, whose row the transaction has locked."""
        assert state in ENDED
        job.state, job.finished, job.worker, job.drawing = state, self.clock(), "", False
        if job.webhook_url:
            job.webhook_state, job.webhook_due = "due", self.clock()
        usage.update_usage(session, job, state)
        self.add_event(session, job, state, data or {})

    def requeue(self, session: Session, job: JobRow, reason: str, *, not_before: float | None = None) -> None:
        """Requeue a job, whose row the transaction has locked: at its old position, or at that of `not_before`."""
        job.state, job.worker, job.drawing, job.step = "queued", "", False, 0
        if not_before is not None:
            job.not_before = not_before
        usage.update_usage(session, job, "queued")
        self.add_event(session, job, "queued", {"why": reason})

    def change(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a transaction; report the changes that it recorded once they are committed."""
        changes: list[Change] = []

        def transaction(session: Session) -> T:
            changes.clear()  # the transaction may be retried
            session.info["changes"] = changes
            return work(session)

        result = self.database.write(transaction)
        for change in changes:
            try:
                self.on_event(change)
            except Exception:  # the change is committed: the caller must not believe that it failed
                log.exception("job %s is %s, but its listener failed", change.job.id, change.state)
        return result

    def add_event(self, session: Session, job: JobRow, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event to a job, whose row the transaction has locked."""
        last = session.scalar(select(func.max(EventRow.number)).where(EventRow.job_id == job.id)) or 0
        session.add(EventRow(job_id=job.id, number=last + 1, kind=kind, at=self.clock(), data=dict(data)))
        session.flush()
        session.info["changes"].append(Change(job=job, state=kind, data=data))


def new_id(now: float) -> str:
    """32 hex digits: the time in milliseconds, then random ones."""
    return f"{int(now * 1000):012x}{secrets.token_hex(10)}"


def lock_job(session: Session, *where: ColumnElement[bool]) -> JobRow | None:
    """The job that matches, locked until the transaction ends."""
    return session.scalar(select(JobRow).where(*where).with_for_update())


def previous_jobs(session: Session, terms: Terms, now: float) -> list[JobRow]:
    """The jobs of the request that this one repeats: by its idempotency key, or because it is marked as a retry.

    A request marked as a retry, without a key, repeats the caller's last equal one, unless that was cancelled or is
    older than RETRY_WINDOW_S.
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
        JobRow.created > now - RETRY_WINDOW_S,
        JobRow.state != "cancelled",
        JobRow.cancel_asked.is_(False),
    )
    last = select(JobRow.request).where(same).order_by(JobRow.id.desc()).limit(1).scalar_subquery()
    return list(session.scalars(select(JobRow).where(JobRow.request == last).order_by(JobRow.place)))
