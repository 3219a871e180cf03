"""The database has threads of its own."""

import asyncio
import threading

from sqlalchemy import text

from safelight.database.connect import Database


def test_what_asks_the_database_waits_for_nothing_else(database: Database) -> None:
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
