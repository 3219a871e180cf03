"""Entries for a ledger, and hands that change its database."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from safelight.database.connect import Database
from safelight.trust.chain_keys import read_keys
from safelight.trust.credentials import trusted_roots
from safelight.trust.entry import Entry, actor_of
from safelight.trust.ledger import Ledger, take_turn
from safelight.trust.tables import LedgerRow
from safelight.trust.verify_chain import Verification, verify_chain

JOE, ANN = actor_of("1a2b3c4d"), actor_of("99887766")


def entry(number: int, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "action": "drawn",
        "asset_id": f"{number:064x}",
        "actor": JOE,
        "time": 1_000_000.0 + number,
        "uid": f"{number:016x}",
        "pixels_before": "b" * 64,
        "pixels_after": "a" * 64,
        "spec_digest": "5" * 64,
        "model": "d" * 64,
        "marks": {"signature": {"certificate": "c" * 64}, "watermark": {"alg": "ss", "key_id": "k1"}},
        "words": {"prompt": f"a red apple, number {number}", "key": "joe"},
        "likeness": b"shape of %d" % number,
    }
    return Entry(**values | changes)


def verified(ledger: Ledger, **changes: Any) -> Verification:
    folder = ledger.folder
    return verify_chain(ledger.database, read_keys(folder), trusted_roots(folder), **{"folder": folder, **changes})


def erase(ledger: Ledger, actor: str) -> int:
    """Words and likenesses of an actor, as `safelight forget` does."""

    def work(session: Session) -> int:
        take_turn(session)
        return ledger.erase(session, "forgotten", LedgerRow.actor == actor, kinds=("words", "likeness"))

    return ledger.database.write(work)


def tamper(database: Database, statement: str, values: Mapping[str, Any] | None = None) -> None:
    """Whoever may write the database may do so past our code."""
    database.write(lambda session: session.execute(text(statement), values or {}))


def column(database: Database, query: str) -> list[Any]:
    return database.read(lambda session: list(session.scalars(text(query))))
