"""The ledger as JSON lines, a row each, for those who keep or check it elsewhere.

    {"seq": 7, "prev": "...", "hash": "...", "record": {...}, "statement": "..."}

`hash` is HMAC-SHA256 of `prev` (32 bytes) and the record as canonical JSON. `statement` stands in checkpoints; the last
line is always one. Words are left out unless they are asked for.
"""

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from safelight.trust.ledger import Ledger
from safelight.trust.tables import LedgerBodyRow, LedgerRow

PAGE = 1000


def export(
    ledger: Ledger, *, since: float | None = None, until: float | None = None, words: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of a time, oldest first, then a checkpoint of the whole ledger, which is made if need be.

    Args:
        since, until: in seconds since the epoch; `until` is exclusive.
        words: include prompts and names that are not erased.

    Raises:
        SafelightError: the database cannot be read, or the checkpoint cannot be made.
    """
    ledger.write_pending()
    ledger.checkpoint()
    query = select(LedgerRow, LedgerBodyRow.body)
    beside = (LedgerBodyRow.seq == LedgerRow.seq) & (LedgerBodyRow.kind == "words")
    query = query.outerjoin(LedgerBodyRow, beside).order_by(LedgerRow.seq).limit(PAGE)
    if since is not None:
        query = query.where(LedgerRow.time >= since)
    if until is not None:
        query = query.where(LedgerRow.time < until)
    after = 0
    while page := ledger.database.read(
        lambda session, after=after: session.execute(query.where(LedgerRow.seq > after)).all()
    ):
        for row, body in page:
            yield line(row) | ({"words": json.loads(body)} if words and body else {})
        after = page[-1][0].seq
    newest = ledger.database.read(newest_checkpoint)
    if newest is not None and newest.seq > after:
        yield line(newest)


def newest_checkpoint(session: Session) -> LedgerRow | None:
    made = select(LedgerRow).where(LedgerRow.action == "checkpoint")
    return session.scalar(made.order_by(LedgerRow.seq.desc()).limit(1))


def line(row: LedgerRow) -> dict[str, Any]:
    record = json.loads(row.record)
    shown: dict[str, Any] = {"seq": row.seq, "prev": row.prev, "hash": row.hash, "record": record}
    if row.action == "checkpoint":
        shown["statement"] = record["details"]["statement"]
    return shown
