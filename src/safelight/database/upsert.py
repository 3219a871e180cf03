"""An insert that says what becomes of a row that is there already, in the words of either database."""

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from safelight.database.tables import Base


def insert_into(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """To be followed by `on_conflict_do_nothing` or `on_conflict_do_update`: of two that look first and write then, one
    would fail."""
    return (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(table)
