"""Opens the database, SQLite or PostgreSQL, and brings its tables up to date."""

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
"""Of each database; as many connections as a pool of PostgreSQL's holds."""
BUSY_S = 20.0
"""How long a write waits for another process's write."""
TRY_S = 0.25
"""How long SQLite itself waits, before it is asked whether there is still time."""
CONNECT_S = 10
"""How long PostgreSQL may take to answer at all."""
MIGRATION_LOCK = 5_081_957
"""Any number, the same in every process: PostgreSQL's name for "somebody is migrating"."""
PASSING = ("locked", "busy", "deadlock", "serialize")


class Database:
    """One engine for both databases; `write` and `read` run a function in a transaction of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="database")

    async def run(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What asks the database, off the event loop and in threads of its own: leases and probes wait for no picture,
        no model and no slow disk."""
        call = partial(contextvars.copy_context().run, partial(work, *args, **named))
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    async def ask(self, look: Callable[Concatenate[Session, P], T], *args: P.args, **named: P.kwargs) -> T:
        """`read` in a thread, with these arguments."""
        return await self.run(self.read, lambda session: look(session, *args, **named))

    def write(self, work: Callable[[Session], T], *, patience_s: float = BUSY_S) -> T:
        """In a transaction, tried again while another process holds the database, for `patience_s` in all.

        Raises:
            StorageFailed: it stayed locked, the disk is full, it takes no writes, or the server is away.
            IntegrityError: the work broke a constraint.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with Session(self.engine, expire_on_commit=False) as session, session.begin():
                    return work(session)
            except OperationalError as error:
                if not is_passing(error) or time.monotonic() > deadline:
                    raise StorageFailed(f"the database cannot be written: {error.orig}") from error
                time.sleep(0.05)
            except IntegrityError:
                raise
            except (DBAPIError, PoolExhausted) as error:
                raise StorageFailed(f"the database cannot be written: {reason(error)}") from error

    def read(self, work: Callable[[Session], T]) -> T:
        """In a transaction that writes nothing.

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


def is_passing(error: DBAPIError) -> bool:
    """Another process is at work; the same may succeed in a moment."""
    return any(words in str(error.orig).lower() for words in PASSING)


def reason(error: DBAPIError | PoolExhausted) -> str:
    return str(error.orig if isinstance(error, DBAPIError) else error)


def open_database(url: str) -> Database:
    """Connect and migrate.

    Raises:
        InvalidRequest: the URL is not one of ours.
        StorageFailed: nobody answers there, it is no database, or a newer safelight's.
    """
    engine = connect(url)
    where = engine.url.render_as_string()
    try:
        with engine.connect() as connection, migrating(connection):
            migrate(connection, where)
    except DBAPIError as error:
        engine.dispose()
        raise StorageFailed(f"cannot open the database {where}: {reason(error)}{remedy(error)}") from error
    except StorageFailed:
        engine.dispose()
        raise
    return Database(engine)


def remedy(error: DBAPIError) -> str:
    """What an operator can do about it."""
    said = str(error.orig).lower()
    for words, advice in (
        ("not a database", "; the file is damaged or something else: move it away, or restore it from a backup"),
        ("malformed", "; the file is damaged: restore it from a backup"),
        ("readonly", "; let this user write the file and its folder, or set SAFELIGHT_HOME"),
        ("unable to open", "; its folder must exist and be writable: set SAFELIGHT_HOME or SAFELIGHT_DATABASE_URL"),
        ("does not exist", "; create it, or set SAFELIGHT_DATABASE_URL"),
        ("refused", "; is the server running, and is SAFELIGHT_DATABASE_URL right?"),
        ("password", "; SAFELIGHT_DATABASE_URL says user and password"),
    ):
        if words in said:
            return advice
    return ""


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
        # A connection whose other end is gone without a word is given up after as long as a lock.
        given_up = {"connect_timeout": CONNECT_S, "tcp_user_timeout": int(BUSY_S * 1000)}
        unsaid = {name: value for name, value in given_up.items() if name not in parsed.query}
        with needing("postgres"):
            engine = create_engine(parsed, connect_args=unsaid, **(pool or {"pool_pre_ping": True, "pool_size": 10}))
        event.listen(engine, "begin", limit_waiting)
        return engine
    if parsed.drivername != "sqlite":
        raise InvalidRequest(f"database_url: {parsed.drivername!r} is not supported; say sqlite or postgresql")
    engine = create_engine(parsed, connect_args={"timeout": TRY_S}, **pool)
    event.listen(engine, "connect", prepare_sqlite)
    event.listen(engine, "begin", begin_at_once)
    return engine


def prepare_sqlite(connection: object, _record: object) -> None:
    connection.isolation_level = None  # pyright: ignore[reportAttributeAccessIssue]  BEGIN is said below
    cursor = connection.cursor()  # pyright: ignore[reportAttributeAccessIssue]
    # Readers do not wait for the writer; a commit is on disk before it is reported.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        patiently(lambda pragma=pragma: cursor.execute(f"PRAGMA {pragma}"))
    cursor.close()


def begin_at_once(connection: Connection) -> None:
    """A writer takes the lock at the start: one that reads first and writes later cannot wait for it in between."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE")


def limit_waiting(connection: Connection) -> None:
    """Who waits for a lock in PostgreSQL waits no longer than in SQLite."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(BUSY_S * 1000)}")


def patiently(work: Callable[[], object]) -> None:
    """SQLite waits for nobody where a file changes its kind of journal, as when several processes open a new one."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            work()
            return
        except Exception as error:
            if not any(words in str(error) for words in PASSING) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def migrating(connection: Connection) -> Generator[None, None, None]:
    """One process at a time; the others find the work done."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = 0"))  # a migration takes as long as it takes
        connection.execute(text(f"SELECT pg_advisory_lock({MIGRATION_LOCK})"))
        connection.commit()
    else:
        patiently(lambda: connection.execute(text("SELECT 1")))  # the first statement takes the lock for writers
    try:
        yield
    finally:
        if connection.dialect.name == "postgresql":
            connection.rollback()
            connection.execute(text(f"SELECT pg_advisory_unlock({MIGRATION_LOCK})"))
            connection.commit()


def migrate(connection: Connection, where: str) -> None:
    # Only who opens a database anew has need of it, and it takes as long to import as the rest.
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
            f"the database {where} was made by a newer safelight ({error}): upgrade, or choose another database"
        ) from error
    connection.commit()
