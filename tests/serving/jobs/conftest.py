"""A line of jobs on either database, and time that passes when a test says so."""

import pytest

from safelight.database.connect import Database
from safelight.serving.jobs.queue import JobQueue


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(database: Database, clock: Clock) -> JobQueue:
    return JobQueue(database, clock=clock)
