"""An insert with conflict handling, in the dialect of either database."""

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from safelight.database.tables import Base


def insert_into(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """Return an insert to complete with `on_conflict_do_nothing` or `on_conflict_do_update`: of two processes that
    check first and then insert, one would fail."""
    return (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(table)
