"""Whether the ledger is what was written: every row, what lies beside it, and the checkpoints.

What a change of the database looks like from here:

    a row or body was edited          its hash, or its digest in the chain, does not hold
    a row was inserted or moved       likewise: hashes need the key
    a row was deleted                 numbers are missing; the next row follows another hash
    a body was deleted                no `erased` row accounts for it
    the newest rows were deleted      a checkpoint names a row that is not there

Rows are read in pages, so that memory does not grow with the ledger. Rows that are appended meanwhile are left out.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from safelight.database.connect import Database
from safelight.errors import InvalidRequest
from safelight.regular_file import is_regular, open_regular
from safelight.trust.entry import GENESIS, body_digest, read_record
from safelight.trust.ledger import CHECKPOINTS, digest_of, holds
from safelight.trust.statements import InvalidStatement, read_statement
from safelight.trust.tables import LedgerBodyRow, LedgerRow

PAGE = 1000
MAX_PROBLEMS = 1000
"""Sentences that are kept; the rest are counted."""
COLUMNS = ("seq", "time", "actor", "action", "asset_id", "uid", "once", "key_id")


@dataclass(slots=True, kw_only=True)
class Verification:
    rows: int = 0
    head: str = GENESIS
    """The hash of the newest row."""
    pictures: int = 0
    erased: int = 0
    """Words and likenesses that were erased, and are accounted for."""
    checkpoints: int = 0
    """That hold, those outside of the database too."""
    first_broken: int | None = None
    """The lowest number of a row that is not as it was written."""
    problems: list[str] = field(default_factory=list[str])
    """One sentence each."""
    num_problems: int = 0

    @property
    def whole(self) -> bool:
        return self.num_problems == 0

    def add(self, seq: int, sentence: str) -> None:
        self.num_problems += 1
        if self.first_broken is None or seq < self.first_broken:
            self.first_broken = seq
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What somebody outside of the database knows of a row."""

    seq: int
    hash: str
    source: str
    """Where that is said, for the sentence."""


@dataclass(slots=True)
class ChainCheck:
    """
    Args:
        keys: of the chain, by id.
        roots: PEM of the roots that signatures of checkpoints must lead to.
    """

    database: Database
    keys: Mapping[str, bytes]
    roots: bytes
    result: Verification = field(default_factory=Verification)
    newest: int = 0

    def rows(self) -> None:
        """Check every row, in its order, with what lies beside it."""
        self.newest = self.database.read(lambda session: session.scalar(select(func.max(LedgerRow.seq)))) or 0
        expected, former = 1, None
        for row, bodies in self.pages():
            if row.seq != expected:
                missing = f"row {expected} is" if row.seq == expected + 1 else f"rows {expected} to {row.seq - 1} are"
                self.result.add(expected, f"{missing} missing")
            self.row(row, bodies, former)
            former, expected = row, row.seq + 1
        self.result.head = former.hash if former else GENESIS

    def pages(self) -> Iterator[tuple[LedgerRow, list[LedgerBodyRow]]]:
        def page(session: Session, after: int) -> tuple[list[LedgerRow], list[LedgerBodyRow]]:
            here = select(LedgerRow).where(LedgerRow.seq > after, LedgerRow.seq <= self.newest)
            rows = list(session.scalars(here.order_by(LedgerRow.seq).limit(PAGE)))
            last = rows[-1].seq if len(rows) == PAGE else self.newest
            beside = select(LedgerBodyRow).where(LedgerBodyRow.seq > after, LedgerBodyRow.seq <= last)
            return rows, list(session.scalars(beside.order_by(LedgerBodyRow.seq, LedgerBodyRow.kind)))

        after = 0
        while after < self.newest:
            rows, bodies = self.database.read(lambda session, after=after: page(session, after))
            by_seq = {seq: list(group) for seq, group in groupby(bodies, key=lambda body: body.seq)}
            for row in rows:
                yield row, by_seq.get(row.seq, [])
            after = rows[-1].seq if len(rows) == PAGE else self.newest

    def row(self, row: LedgerRow, bodies: Iterable[LedgerBodyRow], former: LedgerRow | None) -> None:
        def wrong(sentence: str) -> None:
            self.result.add(row.seq, sentence)

        self.result.rows += 1
        follows = former.hash if former else GENESIS
        if row.prev != follows:
            wrong(f"row {row.seq} does not follow row {former.seq if former else 0}: one was removed, added or moved")
        key = self.keys.get(row.key_id)
        if key is None:
            wrong(f"row {row.seq} cannot be checked: its key {row.key_id!r} is not here")
        elif not holds(key, row):
            wrong(f"row {row.seq} was changed, or not written with our key")
        record = read_record(row.record)
        if record is None:
            wrong(f"row {row.seq} cannot be read")
            return
        for name in COLUMNS:
            if record.get(name) != getattr(row, name):
                wrong(f"row {row.seq}: its column {name} says {getattr(row, name)!r}, its record {record.get(name)!r}")
        if former is not None and row.key_id != former.key_id and record.get("action") != "rotated":
            wrong(f"row {row.seq} has another key than row {former.seq}, and no rotation says so")
        self.beside(row.seq, bodies, dict(record.get("bodies") or {}))
        self.result.pictures += record.get("action") in ("drawn", "upscaled")
        if record.get("action") == "checkpoint":
            self.statement(row.seq, record.get("details") or {})

    def beside(self, seq: int, bodies: Iterable[LedgerBodyRow], digests: dict[str, str]) -> None:
        """Check what lies beside a row; erased bodies are counted here, and accounted for in `erasures`."""
        for body in bodies:
            expected = digests.pop(body.kind, None)
            if expected is None:
                self.result.add(seq, f"row {seq}: {body.kind} lie beside it that the chain knows nothing of")
            elif body.erased_by is not None and body.salt is None and body.body is None:
                continue
            elif body.salt is None or body.body is None or body_digest(body.salt, body.body) != expected:
                self.result.add(seq, f"row {seq}: the {body.kind} beside it were changed")
        for kind in digests:
            self.result.add(seq, f"row {seq}: the {kind} beside it are lost, and no erasure says so")

    def erasures(self) -> None:
        """Check that each `erased` row erased what it says, and that nothing else was."""
        chain = select(LedgerRow.seq, LedgerRow.record).where(LedgerRow.action == "erased")
        after = 0
        while rows := self.database.read(
            lambda session, after=after: session.execute(
                chain.where(LedgerRow.seq > after, LedgerRow.seq <= self.newest).order_by(LedgerRow.seq).limit(PAGE)
            ).all()
        ):
            for seq, record in rows:
                said = (read_record(record) or {}).get("details") or {}
                count, digest = digest_of(self.erased_by(seq))
                if (count, digest) == (said.get("count"), said.get("digest")):
                    self.result.erased += count
                else:
                    self.result.add(seq, f"row {seq} says that it erased {said.get('count')}, and {count} say so of it")
            after = rows[-1].seq
        by_us = select(LedgerRow.seq).where(LedgerRow.action == "erased")
        stray = select(LedgerBodyRow.seq, LedgerBodyRow.kind).where(
            LedgerBodyRow.erased_by.is_not(None),
            LedgerBodyRow.erased_by <= self.newest,
            LedgerBodyRow.erased_by.not_in(by_us),
        )
        for seq, kind in self.database.read(lambda session: session.execute(stray.limit(MAX_PROBLEMS)).all()):
            self.result.add(seq, f"row {seq}: the {kind} beside it are lost, and no erasure says so")

    def orphans(self) -> None:
        """Find what lies beside rows that are not there."""
        row = select(LedgerRow.seq).where(LedgerRow.seq == LedgerBodyRow.seq)
        query = select(LedgerBodyRow.seq).where(~row.exists()).distinct().order_by(LedgerBodyRow.seq)
        for seq in self.database.read(lambda session: session.scalars(query.limit(MAX_PROBLEMS)).all()):
            self.result.add(seq, f"row {seq} is missing, and what lies beside it is there")

    def erased_by(self, seq: int) -> Iterator[tuple[int, str]]:
        place = tuple_(LedgerBodyRow.seq, LedgerBodyRow.kind)
        query = select(LedgerBodyRow.seq, LedgerBodyRow.kind).where(LedgerBodyRow.erased_by == seq)
        last = (0, "")
        while page := self.database.read(
            lambda session, last=last: session.execute(
                query.where(place > last).order_by(LedgerBodyRow.seq, LedgerBodyRow.kind).limit(PAGE)
            ).all()
        ):
            yield from ((one.seq, one.kind) for one in page)
            last = (page[-1].seq, page[-1].kind)

    def statement(self, seq: int, details: Mapping[str, Any]) -> None:
        """Check a checkpoint in the chain."""
        where = f"the checkpoint in row {seq}"
        witness = self.witness_of(str(details.get("statement")), where)
        if isinstance(witness, str):
            self.result.add(seq, witness)
        elif self.compare([witness]):
            self.result.checkpoints += 1

    def witness_of(self, statement: str, where: str) -> Witness | str:
        """What a checkpoint says; a sentence, if it does not hold."""
        try:
            said = read_statement(statement, self.roots)
        except InvalidStatement as error:
            return f"{where} does not hold: {error}"
        if not said.trusted:
            return f"{where} is signed by a certificate that is not trusted here ({said.signer[:16]}...)"
        payload = said.payload
        if payload.get("kind") != "checkpoint" or not isinstance(payload.get("seq"), int):
            return f"{where} is no checkpoint"
        return Witness(seq=payload["seq"], hash=str(payload.get("hash")), source=where)

    def compare(self, witnesses: Iterable[Witness]) -> bool:
        """Compare rows with what is known of them outside; returns whether all agree."""
        agreed = True
        for page in pages_of(witnesses):
            query = select(LedgerRow.seq, LedgerRow.hash).where(LedgerRow.seq.in_([one.seq for one in page]))
            rows = self.database.read(lambda session, query=query: session.execute(query).all())
            hashes = {row.seq: row.hash for row in rows}
            for one in page:
                if hashes.get(one.seq) == one.hash:
                    continue
                agreed = False
                if one.seq in hashes:
                    self.result.add(one.seq, f"row {one.seq} is another one than {one.source} says")
                else:
                    self.result.add(
                        one.seq, f"row {one.seq}, which {one.source} names, is not there: the ledger was cut short"
                    )
        return agreed


def verify_chain(
    database: Database,
    keys: Mapping[str, bytes],
    roots: bytes,
    *,
    folder: Path | None = None,
    against: Path | None = None,
) -> Verification:
    """
    Args:
        keys: of the chain, by id (`chain_keys.read_keys`).
        roots: PEM of the roots that signatures of checkpoints must lead to (`credentials.trusted_roots`).
        folder: SAFELIGHT_HOME/trust; its `checkpoints.jsonl` is compared too.
        against: an earlier export, whose rows and checkpoints are compared.

    Raises:
        StorageFailed: the database cannot be read.
        InvalidRequest: `against` cannot be read, or is no export.
    """
    check = ChainCheck(database, keys, roots)
    check.rows()
    check.erasures()
    check.orphans()
    for path in (folder / CHECKPOINTS if folder else None, against):
        if path is not None and (path == against or is_regular(path)):
            checkpoints = 0
            for line in lines_of(path, torn=path != against):
                if statement := line.get("statement"):
                    witness = check.witness_of(str(statement), f"a checkpoint in {path.name}")
                    if isinstance(witness, str):
                        check.result.add(int(line.get("seq", 0)), witness)
                    else:
                        checkpoints += check.compare([witness])
            check.result.checkpoints += checkpoints
    if against is not None:
        exported = (line for line in lines_of(against) if "hash" in line)
        check.compare(Witness(seq=line["seq"], hash=line["hash"], source=against.name) for line in exported)
    return check.result


def lines_of(path: Path, *, torn: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Args:
        torn: the last line may be cut short, as a power cut leaves it.
    """
    try:
        with open_regular(path) as file:
            for line in file:
                if torn and not line.endswith(b"\n"):
                    return
                value = json.loads(line)
                value["seq"] = int(value["seq"])
                yield value
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(f"{path} is no export of a ledger ({type(error).__name__}: {error})") from None


def pages_of(witnesses: Iterable[Witness]) -> Iterator[list[Witness]]:
    page: list[Witness] = []
    for one in witnesses:
        page.append(one)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page
