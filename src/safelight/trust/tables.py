"""Database tables of the ledger: the chain, and beside it what can be erased."""

from sqlalchemy import BigInteger, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from safelight.database.tables import Base


class LedgerRow(Base):
    """A row of the chain, written once. All columns but three repeat the record, for queries; `verify_chain` compares
    them."""

    __tablename__ = "ledger"
    __table_args__ = (
        Index("ledger_by_time", "time"),
        Index("ledger_by_actor", "actor"),
        Index("ledger_by_action", "action", "seq"),
        Index("ledger_by_asset", "asset_id"),
        Index("ledger_by_uid", "uid"),
    )

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """From 1, without gaps."""
    time: Mapped[float]
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(16))
    asset_id: Mapped[str | None] = mapped_column(String(64))
    uid: Mapped[str | None] = mapped_column(String(16))
    once: Mapped[str | None] = mapped_column(String(64), unique=True)
    """What may be in the ledger once (`Entry.once`)."""
    key_id: Mapped[str] = mapped_column(String(16))
    record: Mapped[str] = mapped_column(Text)
    """Canonical JSON."""
    prev: Mapped[str] = mapped_column(String(64))
    """The hash of the row before."""
    hash: Mapped[str] = mapped_column(String(64))
    """HMAC-SHA256 of `prev` and `record`."""


class LedgerBodyRow(Base):
    """What can be erased of a row. An erased one keeps its place, and says which row of the chain erased it."""

    __tablename__ = "ledger_bodies"
    __table_args__ = (Index("ledger_bodies_erased", "erased_by", "seq", "kind"),)

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    """`words` or `likeness`."""
    salt: Mapped[bytes | None] = mapped_column(LargeBinary)
    body: Mapped[str | None] = mapped_column(Text)
    erased_by: Mapped[int | None] = mapped_column(BigInteger)
