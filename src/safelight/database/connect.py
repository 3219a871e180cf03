"""Open the database, SQLite or PostgreSQL, and migrate its tables."""

import asyncio
import contextvars
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import resources
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from safelight.errors import InvalidRequest, StorageFailed, needing

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 10
"""Threads per database, equal to the connections of the PostgreSQL pool."""
LOCK_TIMEOUT_S = 20.0
"""Longest wait of a write for another process's write."""
SQLITE_TIMEOUT_S = 0.25
"""SQLite's own lock timeout; `write` tries again until its patience ends."""
CONNECT_S = 10
"""Connection timeout of PostgreSQL."""
MIGRATION_LOCK = 5_081_957
"""The id of PostgreSQL's advisory lock for migrations: any number, the same in every process."""
TRANSIENT_ERRORS = ("locked", "busy", "deadlock", "serialize")


class Database:
    """The engine of either database; `write` and `read` each run a function in its own transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="database")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run database work in dedicated threads, so that leases and probes never wait for images, models or disks."""
        call = partial(contextvars.copy_context().run, partial(work, *args, **kwargs))
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    async def ask(self, query: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `read` in a thread, with these arguments."""
        return await self.run(self.read, lambda session: query(session, *args, **kwargs))

    def write(self, work: Callable[[Session], T], *, patience_s: float = LOCK_TIMEOUT_S) -> T:
        """Run `work` in a transaction, retried for up to `patience_s` while another process locks the database.

        Raises:
            StorageFailed: it stayed locked, the disk is full, it is read-only, or the server is unreachable.
            IntegrityError: the work violated a constraint.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with Session(self.engine, expire_on_commit=False) as session, session.begin():
                    return work(session)
            except OperationalError as error:
                if not is_transient(error) or time.monotonic() > deadline:
                    raise StorageFailed(f"the database cannot be written: {error.orig}") from error
                time.sleep(0.05)
            except IntegrityError:
                raise
            except (DBAPIError, PoolExhausted) as error:
                raise StorageFailed(f"the database cannot be written: {reason(error)}") from error

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a read-only transaction.

        Raises:
            StorageFailed: the file or the server cannot be read.
        """
        try:
            with Session(self.engine.execution_options(reads=True), expire_on_commit=False) as session:
                return work(session)
        except (DBAPIError, PoolExhausted) as error:
            raise StorageFailed(f"the database cannot be read: {reason(error)}") from error

    def close(self) -> None:
        self.threads.shutdown()
        self.engine.dispose()


def is_transient(error: DBAPIError) -> bool:
    """Return whether another process caused the error, so that a retry may succeed."""
    return any(phrase in str(error.orig).lower() for phrase in TRANSIENT_ERRORS)


def reason(error: DBAPIError | PoolExhausted) -> str:
    return str(error.orig if isinstance(error, DBAPIError) else error)


def open_database(url: str) -> Database:
    """Connect and migrate.

    Raises:
        InvalidRequest: the URL is invalid or of an unsupported database.
        StorageFailed: the server is unreachable, the file is no database, or a newer safelight made it.
    """
    engine = connect(url)
    masked_url = engine.url.render_as_string()
    try:
        with engine.connect() as connection, migrating(connection):
            migrate(connection, masked_url)
    except DBAPIError as error:
        engine.dispose()
        raise StorageFailed(f"cannot open the database {masked_url}: {reason(error)}{remedy(error)}") from error
    except StorageFailed:
        engine.dispose()
        raise
    return Database(engine)


def remedy(error: DBAPIError) -> str:
    """Return advice for the operator, or an empty string."""
    message = str(error.orig).lower()
    for phrase, advice in (
        ("not a database", "; the file is damaged or is not a database: move it away, or restore it from a backup"),
        ("malformed", "; the file is damaged: restore it from a backup"),
        ("readonly", "; let this user write the file and its folder, or set SAFELIGHT_HOME"),
        ("unable to open", "; its folder must exist and be writable: set SAFELIGHT_HOME or SAFELIGHT_DATABASE_URL"),
        ("does not exist", "; create it, or set SAFELIGHT_DATABASE_URL"),
        ("refused", "; is the server running, and is SAFELIGHT_DATABASE_URL right?"),
        ("password", "; check user and password in SAFELIGHT_DATABASE_URL"),
    ):
        if phrase in message:
            return advice
    return ""


def connect(url: str, *, pooled: bool = True) -> Engine:
    """Create the engine. If not `pooled`, each use opens and closes a connection: for occasional reads."""
    pool: dict[str, Any] = {} if pooled else {"poolclass": NullPool}
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidRequest(f"database_url: {url!r} is not a URL; use sqlite:///FILE or postgresql://...") from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        # A connection whose peer vanished is closed after the lock timeout.
        timeouts = {"connect_timeout": CONNECT_S, "tcp_user_timeout": int(LOCK_TIMEOUT_S * 1000)}
        defaults = {name: value for name, value in timeouts.items() if name not in parsed.query}
        with needing("postgres"):
            engine = create_engine(parsed, connect_args=defaults, **(pool or {"pool_pre_ping": True, "pool_size": 10}))
        event.listen(engine, "begin", limit_lock_wait)
        return engine
    if parsed.drivername != "sqlite":
        raise InvalidRequest(f"database_url: {parsed.drivername!r} is not supported; use sqlite or postgresql")
    engine = create_engine(parsed, connect_args={"timeout": SQLITE_TIMEOUT_S}, **pool)
    event.listen(engine, "connect", prepare_sqlite)
    event.listen(engine, "begin", begin_transaction)
    return engine


def prepare_sqlite(connection: object, _record: object) -> None:
    connection.isolation_level = None  # pyright: ignore[reportAttributeAccessIssue]  `begin_transaction` sends BEGIN
    cursor = connection.cursor()  # pyright: ignore[reportAttributeAccessIssue]
    # Readers do not wait for the writer; a commit is synced to disk before it returns; what is deleted is overwritten.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        retry_while_locked(lambda pragma=pragma: cursor.execute(f"PRAGMA {pragma}"))
    cursor.close()


def begin_transaction(connection: Connection) -> None:
    """Take SQLite's write lock at the start: a transaction that reads first cannot wait for the lock later."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE")


def limit_lock_wait(connection: Connection) -> None:
    """Limit waiting for a lock in PostgreSQL to the same time as in SQLite."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")


def retry_while_locked(work: Callable[[], object]) -> None:
    """Retry: SQLite does not wait for locks when the journal mode changes, as if processes open a new file at once."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            work()
            return
        except Exception as error:
            if not any(phrase in str(error) for phrase in TRANSIENT_ERRORS) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def migrating(connection: Connection) -> Generator[None, None, None]:
    """Hold a lock, so that one process migrates and the others find the tables up to date."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = 0"))  # no limit for a migration
        connection.execute(text(f"SELECT pg_advisory_lock({MIGRATION_LOCK})"))
        connection.commit()
    else:
        retry_while_locked(
            lambda: connection.execute(text("SELECT 1"))
        )  # the first statement takes the lock for writers
    try:
        yield
    finally:
        if connection.dialect.name == "postgresql":
            connection.rollback()
            connection.execute(text(f"SELECT pg_advisory_unlock({MIGRATION_LOCK})"))
            connection.commit()


def migrate(connection: Connection, url: str) -> None:
    # Imported here, since it is needed only to open a database and takes as long to import as the rest.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(resources.files("safelight.database") / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageFailed(
            f"the database {url} was made by a newer safelight ({error}): upgrade, or choose another database"
        ) from error
    connection.commit()
