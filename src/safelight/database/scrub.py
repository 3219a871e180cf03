"""Make sure that deleted rows are gone from the database's own files, and not only from its tables.

SQLite overwrites what is deleted (`secure_delete`), but its write-ahead log has the old pages until it is emptied.
PostgreSQL leaves dead rows in its files until they are rewritten. Its own write-ahead log, replicas and backups are out
of reach.
"""

import time
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from safelight.database.connect import LOCK_TIMEOUT_S, TRANSIENT_ERRORS, Database
from safelight.database.tables import Base
from safelight.errors import StorageFailed


def scrub(database: Database, tables: Sequence[type[Base]]) -> str:
    """Rewrite these tables, which blocks their writers meanwhile; returns what was done, in words.

    Raises:
        StorageFailed: other processes use the database all the time, or the disk is full.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    postgresql = database.engine.dialect.name == "postgresql"
    while True:
        try:
            return vacuum_postgresql(database, tables) if postgresql else vacuum_sqlite(database)
        except Exception as error:
            busy = any(phrase in str(error).lower() for phrase in TRANSIENT_ERRORS)
            if busy and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            orig = error.orig if isinstance(error, DBAPIError) else error
            raise StorageFailed(
                "the rows are deleted, but their bytes are still in the database's files, which cannot be rewritten "
                f"({orig}): mend that and run the command again"
            ) from error


def vacuum_sqlite(database: Database) -> str:
    # VACUUM runs in no transaction, and SQLAlchemy begins one with every statement.
    connection = database.engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("VACUUM")
        busy, _, _ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StorageFailed("the write-ahead log is busy: another process reads the database")
    finally:
        connection.close()
    return "VACUUM, and the write-ahead log emptied"


def vacuum_postgresql(database: Database, tables: Sequence[type[Base]]) -> str:
    names = ", ".join(table.__tablename__ for table in tables)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM (FULL) {names}")
    return f"VACUUM FULL of {names}"
