"""Live events of the jobs that run in this process, for previews, progress and quick answers.

The database stores the durable facts; here are the transient ones, and a notification that saves waiters a poll.
"""

import asyncio
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager

from safelight.events import Event, Previewed, Queued, Started, Stepped


class JobListeners:
    """Event queues by job id; belongs to one event loop."""

    def __init__(self) -> None:
        self.listeners: dict[str, set[asyncio.Queue[tuple[str, Event | None]]]] = defaultdict(set)
        self.progress: dict[str, tuple[int, int]] = {}
        """Step and total steps of the jobs that run in this process."""
        self.previews: dict[str, Previewed] = {}

    def publish(self, job_id: str, event: Event) -> None:
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

    def notify_changed(self, job_id: str) -> None:
        """The job's row has changed."""
        for listener in self.listeners.get(job_id, ()):
            listener.put_nowait((job_id, None))

    def forget(self, job_id: str) -> None:
        self.progress.pop(job_id, None)
        self.previews.pop(job_id, None)

    @contextmanager
    def subscribe(self, *job_ids: str) -> Generator[asyncio.Queue[tuple[str, Event | None]], None, None]:
        """A queue of (job id, event) for these jobs; None instead of an event: the job's row has changed."""
        events: asyncio.Queue[tuple[str, Event | None]] = asyncio.Queue()
        for job_id in job_ids:
            self.listeners[job_id].add(events)
        try:
            yield events
        finally:
            for job_id in job_ids:
                self.listeners[job_id].discard(events)
                if not self.listeners[job_id]:
                    del self.listeners[job_id]
