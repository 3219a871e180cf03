"""The ledger: what was drawn, for whom, by which model and spec, with which marks, as a chain in the database.

    ledger.append(Entry(action="drawn", asset_id=..., actor=actor_of(tenant), ...))
    ledger.find(uid)                         the rows of a watermark's id
    ledger.erase(session, "forgotten", ...)  words and likenesses, not rows

Each row's hash covers the one before it (`entry.link`), so that a change, a row that is missing or one too many shows
(`verify_chain`). That the newest rows are missing shows only against a checkpoint: a signed statement of a row's number
and hash, made every CHECKPOINT_EVERY rows, in the chain, in `checkpoints.jsonl`, and in every export.

One writer at a time, in all processes: the transaction takes a lock before it reads the newest row.
"""

import base64
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast

from sqlalchemy import ColumnElement, Table, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from safelight.database.connect import Database, open_database
from safelight.errors import SafelightError, StorageFailed
from safelight.settings import Settings
from safelight.trust.chain_keys import add_key, open_keys, read_keys
from safelight.trust.credentials import storage_errors
from safelight.trust.entry import GENESIS, LOCAL, Action, Entry, Kind, body_digest, canonical, link, once, read_record
from safelight.trust.pending import Pending
from safelight.trust.statements import StatementSigner
from safelight.trust.tables import LedgerBodyRow, LedgerRow

log = logging.getLogger(__name__)

CHECKPOINT_EVERY = 1000
CHECKPOINTS = "checkpoints.jsonl"
"""In SAFELIGHT_HOME/trust: so that a database that lost its newest rows differs from what lies outside of it."""
PATIENCE_S = 5.0
"""How long an entry waits for another process's write, before it is kept in a file."""
APPENDING = 5_081_959
"""Key of the PostgreSQL advisory lock of writers: any number, the same in every process."""
DAY_S = 86_400.0
SALT_BYTES = 32
ROWS, BODIES = (cast(Table, row.__table__) for row in (LedgerRow, LedgerBodyRow))
"""For inserts, which take half the time of those by class."""
PAGE = 1000
"""Rows that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    seq: int | None
    """None: the database does not take it now; it is kept in a file, and follows later."""
    asset_id: str
    """The asset of this place of the request: another one than the entry's, if the place had one already."""
    new: bool
    """Whether the ledger did not have it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A row of a picture, for those who ask whether it is ours."""

    seq: int
    record: Mapping[str, Any]
    """`Entry.record`, and what the chain adds."""
    likeness: bytes | None
    """See `fingerprint.likeness`; None: it has none, or it was erased."""
    intact: bool
    """Whether its own hash holds; a row for which it does not proves nothing."""


class Ledger:
    """Safe to use from many threads and processes.

    Args:
        database: the server's; left out, one is opened when it is first needed, and closed with `close`.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database | None = None,
        *,
        clock: Callable[[], float] = time.time,
        checkpoint_every: int = CHECKPOINT_EVERY,
    ) -> None:
        self.settings = settings
        self.folder = settings.trust
        self.pending = Pending(self.folder)
        self.clock = clock
        self.checkpoint_every = checkpoint_every
        self.given = database
        self.opened: Database | None = None
        self.opening = threading.Lock()
        self.keys: dict[str, bytes] = {}

    @property
    def database(self) -> Database:
        """
        Raises:
            StorageFailed: it cannot be opened.
        """
        if self.given is not None:
            return self.given
        with self.opening:
            if self.opened is None:
                self.settings.make_home()
                self.opened = open_database(self.settings.database)
            return self.opened

    def close(self) -> None:
        with self.opening:
            if self.opened is not None:
                self.opened.close()
                self.opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # Pictures

    def append(self, entry: Entry) -> Appended:
        """Write an entry, once however often it is called; call it when the file is stored, before it is given out.

        Raises:
            StorageFailed: neither the database nor the disk takes it: the picture must not be given out.
        """
        if self.settings.trust_ledger_days == 0:
            entry = replace(entry, words={})
        try:
            self.write_pending()
            return self.write(entry)
        except StorageFailed as error:
            self.pending.put(entry)
            log.warning("the ledger cannot be written, and the entry follows later: %s", error)
            return Appended(seq=None, asset_id=entry.asset_id, new=True)

    def write(self, entry: Entry) -> Appended:
        """
        Raises:
            StorageFailed: the database does not take it.
        """

        def work(session: Session) -> Appended:
            take_turn(session)
            known = session.execute(select(LedgerRow.seq, LedgerRow.asset_id).where(LedgerRow.once == entry.once))
            if (row := known.first()) is not None:
                return Appended(seq=row.seq, asset_id=row.asset_id or "", new=False)
            seq = self.add(session, entry.action, entry.record(), entry.bodies())
            return Appended(seq=seq, asset_id=entry.asset_id, new=True)

        try:
            appended = self.database.write(work, patience_s=PATIENCE_S)
        except IntegrityError as error:
            raise StorageFailed(
                f"the ledger takes no more rows ({error.orig}): `safelight trust ledger verify` says what is wrong"
            ) from error
        if appended.new and appended.seq and appended.seq % self.checkpoint_every == 0:
            try:
                self.checkpoint()
            except SafelightError as error:
                log.warning("no checkpoint of the ledger could be made: %s", error)
        return appended

    def write_pending(self) -> int:
        """Write the entries that could not be written before; returns how many.

        Raises:
            StorageFailed: the database does not take them.
        """
        written = 0
        for path, entry in self.pending.read():
            self.write(entry)
            self.pending.remove(path)
            written += 1
        return written

    def recorded(self, place: str, spec_digest: str) -> str | None:
        """The asset that a place of a request has already: ask before a picture is signed for it anew."""
        wanted = once(place, spec_digest)
        query = select(LedgerRow.asset_id).where(LedgerRow.once == wanted)
        try:
            self.write_pending()
            return self.database.read(lambda session: session.scalar(query))
        except StorageFailed:
            return next((entry.asset_id for _, entry in self.pending.read() if entry.once == wanted), None)

    # Asked by those who verify

    def find(self, uid: str) -> list[Found]:
        """The rows of a watermark's id, 16 hex digits, oldest first: several, where a spec was drawn several times."""
        return self.database.read(lambda session: list(self.found(session, LedgerRow.uid == uid)))

    def find_asset(self, asset_id: str) -> list[Found]:
        """The rows of a stored file, by its sha256, oldest first."""
        return self.database.read(lambda session: list(self.found(session, LedgerRow.asset_id == asset_id)))

    def found(self, session: Session, condition: ColumnElement[bool]) -> Iterator[Found]:
        keys = self.known_keys()
        likeness = (LedgerBodyRow.seq == LedgerRow.seq) & (LedgerBodyRow.kind == "likeness")
        query = select(LedgerRow, LedgerBodyRow.salt, LedgerBodyRow.body).outerjoin(LedgerBodyRow, likeness)
        for row, salt, body in session.execute(query.where(condition).order_by(LedgerRow.seq)):
            key, record = keys.get(row.key_id), read_record(row.record) or {}
            # The columns by which it was found may have been changed, and are not what was hashed.
            same = all(record.get(name) == getattr(row, name) for name in ("seq", "uid", "asset_id"))
            intact = same and holds(key, row)
            kept = None
            if salt is not None and body is not None:
                expected = (record.get("bodies") or {}).get("likeness")
                intact = intact and body_digest(salt, body) == expected
                kept = base64.b64decode(body) if intact else None
            yield Found(seq=row.seq, record=record, likeness=kept, intact=intact)

    # Erasing

    def retain(self) -> int:
        """Erase the words of rows older than `trust_ledger_days`; returns how many. Call it now and then."""
        days = self.settings.trust_ledger_days
        if days is None:
            return 0
        old = LedgerRow.time < self.clock() - days * DAY_S

        def work(session: Session) -> int:
            take_turn(session)
            return self.erase(session, "retention", old, kinds=("words",))

        return self.database.write(work)

    def erase(self, session: Session, reason: str, condition: ColumnElement[bool], *, kinds: Collection[Kind]) -> int:
        """Erase what lies beside the rows that meet the condition, and say so in the chain; returns how many bodies.
        The rows stay. The transaction has taken its turn (`take_turn`)."""
        rows = select(LedgerRow.seq).where(condition)
        chosen = LedgerBodyRow.erased_by.is_(None) & LedgerBodyRow.kind.in_(kinds) & LedgerBodyRow.seq.in_(rows)
        order = LedgerBodyRow.seq, LedgerBodyRow.kind
        count, digest = digest_of(session.execute(select(*order).where(chosen).order_by(*order)).yield_per(PAGE))
        if count:
            details = {"reason": reason, "count": count, "digest": digest}
            seq = self.add(session, "erased", {"actor": LOCAL, "time": self.clock(), "details": details})
            values = {"salt": None, "body": None, "erased_by": seq}
            session.execute(
                update(LedgerBodyRow).where(chosen).values(values).execution_options(synchronize_session=False)
            )
        return count

    # The chain

    def add(
        self,
        session: Session,
        action: Action,
        record: Mapping[str, Any],
        bodies: Mapping[Kind, str] | None = None,
        *,
        key_id: str = "",
    ) -> int:
        """Add a row and return its number. The transaction has taken its turn.

        Args:
            key_id: of the key from this row on; left out, that of the row before.

        Raises:
            StorageFailed: the key is not here.
        """
        last = session.execute(
            select(LedgerRow.seq, LedgerRow.hash, LedgerRow.key_id).order_by(LedgerRow.seq.desc()).limit(1)
        ).first()
        seq, prev = (last.seq + 1, last.hash) if last else (1, GENESIS)
        key_id = key_id or (last.key_id if last else "")
        key_id, key = self.key(key_id)
        salted = [(kind, os.urandom(SALT_BYTES), body) for kind, body in (bodies or {}).items()]
        digests = {kind: body_digest(salt, body) for kind, salt, body in salted}
        whole = {**record, "action": action, "seq": seq, "key_id": key_id, **({"bodies": digests} if digests else {})}
        written = canonical(whole)
        columns = {name: whole.get(name) for name in ("time", "actor", "action", "asset_id", "uid", "once", "key_id")}
        hashed = link(key, prev, written)
        connection = session.connection()
        connection.execute(ROWS.insert(), {"seq": seq, "record": written, "prev": prev, "hash": hashed, **columns})
        if salted:
            beside = [{"seq": seq, "kind": kind, "salt": salt, "body": body} for kind, salt, body in salted]
            connection.execute(BODIES.insert(), beside)
        return seq

    def key(self, key_id: str) -> tuple[str, bytes]:
        """The key of that id; the newest, if it is empty.

        Raises:
            StorageFailed: it is not here.
        """
        if not self.keys or (key_id and key_id not in self.keys):
            # None is made for a chain that has one already.
            self.keys = read_keys(self.folder) if key_id else open_keys(self.folder)
        key_id = key_id or [*self.keys][-1]
        if key_id not in self.keys:
            raise StorageFailed(
                f"the ledger goes on with the key {key_id}, which is not in {self.folder}: copy ledger.json from where "
                "the ledger was written before"
            )
        return key_id, self.keys[key_id]

    def known_keys(self) -> Mapping[str, bytes]:
        """All keys as they are now; none is made."""
        return read_keys(self.folder)

    def rotate(self) -> str:
        """Go on with a new key; rows of the former one are checked with it as before. Returns the new key's id."""
        key_id, self.keys = add_key(self.folder)

        def work(session: Session) -> None:
            take_turn(session)
            self.add(session, "rotated", {"actor": LOCAL, "time": self.clock()}, key_id=key_id)

        self.database.write(work)
        return key_id

    def checkpoint(self) -> str | None:
        """Sign the number and hash of the newest row, unless that is a checkpoint already; returns the statement, or
        None if the ledger is empty.

        Raises:
            SafelightError: it cannot be signed or written.
        """
        newest = select(LedgerRow).order_by(LedgerRow.seq.desc()).limit(1)
        last = self.database.read(lambda session: session.scalar(newest))
        if last is None:
            return None
        if last.action == "checkpoint":
            return json.loads(last.record)["details"]["statement"]
        payload = {"kind": "checkpoint", "seq": last.seq, "hash": last.hash, "time": self.clock()}
        # Signed before the transaction: a key service may take seconds, and the others would wait.
        statement = StatementSigner.open(self.settings).sign(payload)

        def work(session: Session) -> None:
            take_turn(session)
            details = {"seq": last.seq, "hash": last.hash, "statement": statement}
            self.add(session, "checkpoint", {"actor": LOCAL, "time": payload["time"], "details": details})

        self.database.write(work)
        line = canonical({"seq": last.seq, "statement": statement}) + "\n"
        with storage_errors(self.folder):
            descriptor = os.open(self.folder / CHECKPOINTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        return statement


def open_ledger(settings: Settings, database: Database | None = None) -> Ledger | None:
    """The process's ledger; None where the operator keeps none."""
    return Ledger(settings, database) if settings.trust_ledger else None


def holds(key: bytes | None, row: LedgerRow) -> bool:
    """Whether a row's hash is that of this key."""
    try:
        return key is not None and link(key, row.prev, row.record) == row.hash
    except ValueError:  # `prev` is no hexadecimal number
        return False


def take_turn(session: Session) -> None:
    """Be the one writer until the transaction ends. SQLite has one anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SELECT pg_advisory_xact_lock({APPENDING})"))


def digest_of(bodies: Any) -> tuple[int, str]:
    """How many pairs of number and kind, in their order, and a digest of them: what a row of action `erased` says."""
    count, digest = 0, hashlib.sha256()
    for seq, kind in bodies:
        digest.update(f"{seq}:{kind}\n".encode())
        count += 1
    return count, digest.hexdigest()
