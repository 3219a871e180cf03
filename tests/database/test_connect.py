"""Opening the database, waiting for it, and the threads that do."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from safelight.database.connect import Database, open_database
from safelight.errors import StorageFailed


def test_database_calls_wait_for_no_other_threads(database: Database) -> None:
    gate = threading.Event()

    def ask() -> int:
        return database.read(lambda session: session.scalars(text("SELECT 7")).one())

    async def play() -> int:
        # Such as models on a disk that hangs: more than the event loop's own pool has threads.
        hung = [asyncio.create_task(asyncio.to_thread(gate.wait)) for _ in range(100)]
        try:
            async with asyncio.timeout(60):
                return await database.run(ask)
        finally:
            gate.set()
            await asyncio.gather(*hung)

    assert asyncio.run(play()) == 7


OPENS = """
import sys
import alembic.command, alembic.config, safelight.serving.jobs.tables, safelight.models.registry.tables
from safelight.database.connect import open_database
print("ready", flush=True)
sys.stdin.readline()
open_database(sys.argv[1]).close()
"""


def test_six_processes_open_a_new_database_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    openers = [subprocess.Popen([sys.executable, "-c", OPENS, url], text=True, **pipe) for _ in range(6)]
    for one in openers:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
    for one in openers:
        assert one.stdin
        one.stdin.write("\n")
        one.stdin.flush()
    faults = [one.communicate()[1] for one in openers]
    assert [one.returncode for one in openers] == [0] * 6, faults


def test_a_write_waits_for_a_lock_as_long_as_it_says(tmp_path: Path) -> None:
    """In all, however often it tries: the lock is not let go until it has given up."""
    database = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    with database.engine.connect() as locker:
        locker.execute(text("SELECT 1"))  # takes the lock for writers
        with pytest.raises(StorageFailed, match="locked"):
            database.write(lambda session: session.execute(text("SELECT 1")), patience_s=0.5)
    database.close()
