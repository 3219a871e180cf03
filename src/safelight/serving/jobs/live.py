"""What happens to jobs in this process, as it happens: for previews, progress and quick answers.

The database has the facts that last; here are the fleeting ones, and the bell that saves waiters a poll.
"""

import asyncio
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager

from safelight.events import Event, Previewed, Queued, Started, Stepped


class JobListeners:
    """Listeners by job id; belongs to one event loop."""

    def __init__(self) -> None:
        self.listeners: dict[str, set[asyncio.Queue[tuple[str, Event | None]]]] = defaultdict(set)
        self.progress: dict[str, tuple[int, int]] = {}
        """Step and total steps of the jobs that are drawn in this process."""
        self.previews: dict[str, Previewed] = {}

    def tell(self, job_id: str, event: Event) -> None:
        match event:
            case Queued():
                self.progress[job_id] = (0, 0)
            case Started():
                self.progress[job_id] = (0, event.total_steps)
            case Stepped():
                self.progress[job_id] = (event.step, event.total_steps)
            case Previewed():
                self.previews[job_id] = event
            case _:
                pass
        for listener in self.listeners.get(job_id, ()):
            listener.put_nowait((job_id, event))

    def ring(self, job_id: str) -> None:
        """The job's row has changed."""
        for listener in self.listeners.get(job_id, ()):
            listener.put_nowait((job_id, None))

    def forget(self, job_id: str) -> None:
        self.progress.pop(job_id, None)
        self.previews.pop(job_id, None)

    @contextmanager
    def listening(self, *job_ids: str) -> Generator[asyncio.Queue[tuple[str, Event | None]], None, None]:
        """A queue of what happens to these jobs, by id; None says that a row has changed."""
        heard: asyncio.Queue[tuple[str, Event | None]] = asyncio.Queue()
        for job_id in job_ids:
            self.listeners[job_id].add(heard)
        try:
            yield heard
        finally:
            for job_id in job_ids:
                self.listeners[job_id].discard(heard)
                if not self.listeners[job_id]:
                    del self.listeners[job_id]
