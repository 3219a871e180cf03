"""Erase a tenant: the key, its jobs and pictures, and what the ledger keeps beside its rows.

    stop        the key no longer works; its queued jobs are cancelled, running ones too
    pictures    files that only this tenant holds
    rows        jobs with specs and idempotency keys, events, usage, holdings; words and likenesses of the ledger
    scrub       the database's files and write-ahead log
    key         last, so that a run that was interrupted can be started again
    report      signed: digests and counts, no text

The ledger's rows stay, which hold digests, so the chain verifies as before. Backups, replicas, logs that were sent
elsewhere and pictures that were handed out are out of reach.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from safelight.assets.store import AssetStore, storage_errors
from safelight.database.connect import Database
from safelight.database.scrub import scrub
from safelight.errors import InvalidRequest, NotReady, SafelightError, StorageFailed, nearest
from safelight.serving.jobs.attempts import LEASE_S
from safelight.serving.jobs.queue import JobQueue
from safelight.serving.jobs.tables import EventRow, HolderRow, JobRow, KeyRow, UsageRow, WorkerRow
from safelight.settings import ORIGINS
from safelight.trust.entry import actor_of
from safelight.trust.ledger import Ledger, take_turn
from safelight.trust.origins import origin_path
from safelight.trust.tables import LedgerBodyRow, LedgerRow

log = logging.getLogger(__name__)

PAGE = 200
"""Pictures at once: other writers of SQLite wait meanwhile."""
POLL_S = 0.5
SETTLE_S = 3.0
"""How long a picture that was just being stored when its job was cancelled may take."""
TABLES = (JobRow, EventRow, UsageRow, HolderRow, LedgerBodyRow, KeyRow)
OUT_OF_REACH = (
    "backups and snapshots of the database and of SAFELIGHT_HOME",
    "replicas and the write-ahead log of a PostgreSQL server",
    "logs kept elsewhere, which name keys",
    "pictures and webhooks that were sent to others",
    "models that were trained for this key",
    "uploads of requests that were refused, which no key holds",
)


@dataclass(slots=True, kw_only=True)
class Counts:
    jobs: int = 0
    live_jobs: int = 0
    """Of these: queued or running."""
    events: int = 0
    usage: int = 0
    pictures: int = 0
    """Files that are erased."""
    pictures_kept: int = 0
    """Files of the tenant that somebody else holds too."""
    runs: int = 0
    """Folders of training runs."""
    ledger_rows: int = 0
    ledger_bodies: int = 0
    """Words and likenesses that the ledger keeps of them."""


@dataclass(slots=True, kw_only=True)
class Forgotten:
    tenant: str
    counts: Counts
    asset_ids: list[str] = field(default_factory=list[str])
    """Of the erased files."""
    scrubbed: str = ""
    """What was done to the database's files."""

    checkpoint: str | None = None
    """Of the ledger afterwards: a signed statement; None if nothing signs now."""

    def report(self, *, now: float) -> dict[str, Any]:
        """Digests and counts; no text, no name."""
        return {
            "kind": "forgotten",
            "time": now,
            "actor": actor_of(self.tenant),
            "counts": asdict(self.counts),
            "assets": self.asset_ids,
            "database": self.scrubbed,
            "checkpoint": self.checkpoint,
            "out_of_reach": list(OUT_OF_REACH),
        }


class Forgetting:
    """One tenant's data.

    Args:
        wait_s: how long running jobs may take to end.
    """

    def __init__(
        self,
        tenant: str,
        queue: JobQueue,
        assets: AssetStore,
        ledger: Ledger,
        *,
        home: Path,
        wait_s: float = 1.5 * LEASE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        assert tenant
        self.tenant = tenant
        self.queue = queue
        self.database = queue.database
        self.assets = assets
        self.ledger = ledger
        self.home = home
        self.wait_s = wait_s
        self.sleep = sleep

    def count(self) -> Counts:
        """What would be erased; nothing is changed."""

        def number(session: Session, column: Any, *where: ColumnElement[bool]) -> int:
            return session.scalar(select(func.count(column)).where(*where)) or 0

        def work(session: Session) -> Counts:
            ours = LedgerRow.actor == actor_of(self.tenant)
            kept = LedgerBodyRow.erased_by.is_(None), LedgerBodyRow.seq.in_(select(LedgerRow.seq).where(ours))
            jobs = select(JobRow.id).where(JobRow.tenant == self.tenant)
            mine, shared = self.pictures(session)
            live = JobRow.state.in_(("queued", "running"))
            return Counts(
                jobs=number(session, JobRow.id, JobRow.tenant == self.tenant),
                live_jobs=number(session, JobRow.id, JobRow.tenant == self.tenant, live),
                events=number(session, EventRow.number, EventRow.job_id.in_(jobs)),
                usage=number(session, UsageRow.job_id, UsageRow.tenant == self.tenant),
                pictures=len(mine),
                pictures_kept=len(shared),
                runs=sum(1 for _ in self.runs(session)),
                ledger_rows=number(session, LedgerRow.seq, ours),
                ledger_bodies=number(session, LedgerBodyRow.seq, *kept),
            )

        return self.database.read(work)

    def erase(self) -> Forgotten:
        """Erase all of it; it may be called again after a failure.

        Raises:
            NotReady: jobs of the tenant still run.
            StorageFailed: files or rows cannot be erased.
        """
        self.stop()
        self.ledger.write_pending()
        counts = self.count()
        erased = self.erase_pictures()
        self.erase_runs()
        self.database.write(self.erase_rows)
        scrub(self.database, TABLES)
        self.database.write(lambda session: session.execute(delete(KeyRow).where(KeyRow.id == self.tenant)))
        scrubbed = scrub(self.database, TABLES)
        checkpoint = None
        try:
            checkpoint = self.ledger.checkpoint()
        except SafelightError as error:  # all is erased, which the caller must learn
            log.warning("no checkpoint of the ledger could be made: %s", error)
        return Forgotten(tenant=self.tenant, counts=counts, asset_ids=erased, scrubbed=scrubbed, checkpoint=checkpoint)

    # Steps

    def stop(self) -> None:
        """Accept no more jobs of the tenant, and end those it has."""
        revoke = update(KeyRow).where(KeyRow.id == self.tenant, KeyRow.revoked.is_(None))
        self.database.write(lambda session: session.execute(revoke.values(revoked=self.queue.clock())))
        live = select(JobRow).where(JobRow.tenant == self.tenant, JobRow.state.in_(("queued", "running")))
        started = [self.queue.cancel(job.id) for job in self.database.read(lambda session: list(session.scalars(live)))]
        deadline = time.monotonic() + self.wait_s
        beats: dict[str, float] | None = None
        while running := self.database.read(lambda session: list(session.scalars(live))):
            now = self.beats()
            beats = now if beats is None else beats
            if time.monotonic() > deadline:
                alive = [job for job in running if now.get(job.worker) != beats.get(job.worker)]
                if alive:
                    raise NotReady(
                        f"{len(alive)} jobs of this key still run; it takes no new ones, so try again when they ended"
                    )
                # The process that ran them is gone, and nobody else will end them.
                break
            self.sleep(POLL_S)
        if any(job.state == "running" for job in started):
            self.sleep(SETTLE_S)

    def beats(self) -> dict[str, float]:
        """Heartbeats of the workers, by token."""
        return self.database.read(lambda session: {row.token: row.beat for row in session.scalars(select(WorkerRow))})

    def erase_pictures(self) -> list[str]:
        """Remove the files, some at a time, each time in the transaction that found out who holds them."""
        mine, _ = self.database.read(self.pictures)
        erased: list[str] = []
        for some in pages(sorted(mine)):
            erased += self.database.write(lambda session, some=some: self.erase_some(session, some))
        return erased

    def erase_some(self, session: Session, asset_ids: list[str]) -> list[str]:
        alone = sorted(set(asset_ids) - self.held_by_others(session, asset_ids))
        for asset_id in alone:
            self.assets.remove(asset_id)
            with storage_errors(origin := origin_path(self.home / ORIGINS, asset_id)):
                origin.unlink(missing_ok=True)
        return alone

    def erase_runs(self) -> None:
        for folder in self.database.read(lambda session: list(self.runs(session))):
            try:
                rmtree(folder)
            except OSError as error:
                raise StorageFailed(f"{folder} cannot be erased: {error.strerror or error}") from error

    def erase_rows(self, session: Session) -> None:
        take_turn(session)
        jobs = select(JobRow.id).where(JobRow.tenant == self.tenant)
        session.execute(delete(EventRow).where(EventRow.job_id.in_(jobs)))
        for table in (UsageRow, HolderRow, JobRow):
            session.execute(delete(table).where(table.tenant == self.tenant))
        ours = LedgerRow.actor == actor_of(self.tenant)
        self.ledger.erase(session, "forgotten", ours, kinds=("words", "likeness"))

    # What there is

    def pictures(self, session: Session) -> tuple[set[str], set[str]]:
        """The stored files of the tenant: those that nobody else holds, and the others."""
        held = session.scalars(select(HolderRow.asset_id).where(HolderRow.tenant == self.tenant))
        made = session.scalars(select(LedgerRow.asset_id).where(LedgerRow.actor == actor_of(self.tenant)))
        found = {asset_id for asset_id in (*held, *made) if asset_id}
        for job in session.scalars(select(JobRow).where(JobRow.tenant == self.tenant)).yield_per(PAGE):
            found |= {job.asset_id} if job.asset_id else set()
            found |= named_in(job.spec)
        found = {asset_id for asset_id in found if self.assets.has(asset_id)}
        shared: set[str] = set()
        for some in pages(sorted(found)):
            shared |= self.held_by_others(session, some)
        return found - shared, shared

    def held_by_others(self, session: Session, asset_ids: list[str]) -> set[str]:
        others = (
            select(HolderRow.asset_id).where(HolderRow.tenant != self.tenant, HolderRow.asset_id.in_(asset_ids)),
            select(JobRow.asset_id).where(JobRow.tenant != self.tenant, JobRow.asset_id.in_(asset_ids)),
            select(LedgerRow.asset_id).where(
                LedgerRow.actor != actor_of(self.tenant), LedgerRow.asset_id.in_(asset_ids)
            ),
        )
        return {asset_id for query in others for asset_id in session.scalars(query) if asset_id}

    def runs(self, session: Session) -> Iterator[Path]:
        """Folders of the tenant's training runs."""
        for job_id in session.scalars(select(JobRow.id).where(JobRow.tenant == self.tenant)):
            folder = self.home / "runs" / job_id
            if folder.is_dir():
                yield folder


def named_in(value: Any) -> set[str]:
    """Whatever looks like the id of a picture, anywhere in a stored spec. It is not parsed: an older safelight may have
    written it."""
    match value:
        case str():
            return {value} if re.fullmatch(r"[0-9a-f]{64}", value) else set()
        case dict():
            return set[str]().union(*map(named_in, value.values()))
        case list():
            return set[str]().union(*map(named_in, value))
        case _:
            return set()


def find_tenant(database: Database, key: str) -> str:
    """The id of a key, by its id or name, whether or not it is still in use.

    Raises:
        InvalidRequest: there is none, or several had that name.
    """
    query = select(KeyRow.id, KeyRow.name).where(or_(KeyRow.id == key, KeyRow.name == key))
    rows = database.read(lambda session: session.execute(query).all())
    if exact := [row.id for row in rows if row.id == key]:
        return exact[0]
    if len(rows) > 1:
        ids = ", ".join(row.id for row in rows)
        raise InvalidRequest(f"several keys had the name {key!r}: give the id of one, of {ids}")
    if not rows:
        names = database.read(lambda session: list(session.scalars(select(KeyRow.name))))
        raise InvalidRequest(f"no key has the name or id {key!r}{nearest(key, names)}; `safelight keys list`")
    return rows[0].id


def pages(values: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), PAGE):
        yield values[start : start + PAGE]
