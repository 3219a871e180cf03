"""Opens the database, SQLite or PostgreSQL, and brings its tables up to date."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import resources
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from safelight.errors import InvalidRequest, StorageFailed, needing

T = TypeVar("T")
BUSY_S = 20
"""How long a write waits for another process's write."""
MIGRATION_LOCK = 5_081_957
"""Any number, the same in every process: PostgreSQL's name for "somebody is migrating"."""


class Database:
    """One engine for both databases; `write` and `read` run a function in a transaction of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def write(self, work: Callable[[Session], T]) -> T:
        """In a transaction, tried again while another process holds the database.

        Raises:
            StorageFailed: it stayed locked, the disk is full, or the server is away.
        """
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                with Session(self.engine, expire_on_commit=False) as session, session.begin():
                    return work(session)
            except OperationalError as error:
                passing = any(words in str(error.orig).lower() for words in ("locked", "busy", "deadlock", "serialize"))
                if not passing or time.monotonic() > deadline:
                    raise StorageFailed(f"the database cannot be written: {error.orig}") from error
                time.sleep(0.05)
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise StorageFailed(f"the database went away: {error.orig}") from error
                raise

    def read(self, work: Callable[[Session], T]) -> T:
        try:
            with Session(self.engine.execution_options(reads=True), expire_on_commit=False) as session:
                return work(session)
        except OperationalError as error:
            raise StorageFailed(f"the database cannot be read: {error.orig}") from error

    def close(self) -> None:
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Connect and migrate.

    Raises:
        InvalidRequest: the URL is not one of ours; StorageFailed: nobody answers there.
    """
    engine = connect(url)
    try:
        with engine.connect() as connection:
            with migrating(connection):
                migrate(connection)
    except OperationalError as error:
        raise StorageFailed(f"cannot open the database {engine.url.render_as_string()}: {error.orig}") from error
    return Database(engine)


def connect(url: str, *, pooled: bool = True) -> Engine:
    """Not `pooled`, each use connects anew and leaves nothing open: for a look now and then."""
    pool: dict[str, Any] = {} if pooled else {"poolclass": NullPool}
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidRequest(f"database_url: {url!r} is not a URL; say sqlite:///FILE or postgresql://...") from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        with needing("postgres"):
            return create_engine(parsed, **(pool or {"pool_pre_ping": True, "pool_size": 10}))
    if parsed.drivername != "sqlite":
        raise InvalidRequest(f"database_url: {parsed.drivername!r} is not supported; say sqlite or postgresql")
    engine = create_engine(parsed, connect_args={"timeout": BUSY_S}, **pool)
    event.listen(engine, "connect", prepare_sqlite)
    event.listen(engine, "begin", begin_at_once)
    return engine


def prepare_sqlite(connection: object, _record: object) -> None:
    connection.isolation_level = None  # pyright: ignore[reportAttributeAccessIssue]  BEGIN is said below
    cursor = connection.cursor()  # pyright: ignore[reportAttributeAccessIssue]
    # Readers do not wait for the writer; a commit is on disk before it is reported.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def begin_at_once(connection: Connection) -> None:
    """A writer takes the lock at the start: one that reads first and writes later cannot wait for it in between."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE")


@contextmanager
def migrating(connection: Connection) -> Generator[None, None, None]:
    """One process at a time; the others find the work done."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_lock({MIGRATION_LOCK})"))
        connection.commit()
    try:
        yield
    finally:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_unlock({MIGRATION_LOCK})"))
            connection.commit()


def migrate(connection: Connection) -> None:
    from alembic import (
        command,
    )  # only who opens a database anew has need of it, and it takes as long to import as the rest
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("safelight.database") / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()
