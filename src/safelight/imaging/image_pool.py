"""Threads of their own for one kind of work, a budget of memory for all of it, and turns that are fair.

    made = await room.work(Turn(tenant="joe", size_bytes=4 * pixels), function, argument, ...)

Each tenant has a line, and another for what its accepted jobs need; the lines are served in turn, one piece of work at
a time. A line has at most half of the threads and of the memory; a piece that takes more begins when nothing else of
its line runs. Whoever is next and finds too little memory is waited for, so that small work cannot keep large work out.
A line that is full refuses; what an accepted job needs is never refused.
"""

import asyncio
import contextvars
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

from safelight.errors import TooManyRequests

P = ParamSpec("P")
T = TypeVar("T")

MAX_WAITING = 128
MAX_WAITING_PER_TENANT = 32
PACE = 0.2
"""How much of the expected time a piece of work takes is the last one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryClaim:
    """Whom a piece of work is for, and how much memory it takes."""

    size_bytes: int
    tenant: str = ""
    accepted: bool = False
    """For a job that was accepted."""


@dataclass(slots=True, eq=False)
class ImageTask:
    turn: MemoryClaim
    call: Callable[[], Any]
    done: "Future[Any]" = field(default_factory=Future[Any])


@dataclass(slots=True)
class TenantQueue:
    waiting: deque[ImageTask] = field(default_factory=deque[ImageTask])
    running: int = 0
    size_bytes: int = 0
    """Of what runs."""


class ImagePool:
    """May be used from any thread and event loop."""

    def __init__(self, name: str, *, threads: int, budget_bytes: int) -> None:
        self.name = name
        self.most_threads = threads
        self.budget_bytes = budget_bytes
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.lock = threading.Lock()
        self.lines: OrderedDict[tuple[str, bool], TenantQueue] = OrderedDict()
        """By tenant, and whether for accepted jobs; whose turn is next comes first."""
        self.pace_s = 1.0

    async def work(self, turn: MemoryClaim, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What `function` returns, once it had its turn.

        Raises:
            TooManyRequests: the line is full.
        """
        work = ImageTask(turn, partial(contextvars.copy_context().run, partial(function, *args, **named)))
        with self.lock:
            if not turn.accepted:
                self.require_place(turn.tenant)
            self.lines.setdefault((turn.tenant, turn.accepted), TenantQueue()).waiting.append(work)
            self.serve()
        return await asyncio.wrap_future(work.done)

    def require_place(self, tenant: str) -> None:
        asked = {tenant: len(line.waiting) for (tenant, accepted), line in self.lines.items() if not accepted}
        if asked.get(tenant, 0) >= MAX_WAITING_PER_TENANT or sum(asked.values()) >= MAX_WAITING:
            raise TooManyRequests(
                f"{self.name}: {sum(asked.values())} wait for their turn, {asked.get(tenant, 0)} of them yours",
                retry_after_s=math.ceil(sum(asked.values()) * self.pace_s / self.most_threads),
                code="pictures_busy",
            )

    def serve(self) -> None:
        """Begin all that may begin; called with the lock held."""
        while work := self.next():
            line = self.lines[work.turn.tenant, work.turn.accepted]
            line.running += 1
            line.size_bytes += work.turn.size_bytes
            self.threads.submit(self.do, work)

    def next(self) -> ImageTask | None:
        """The one whose turn it is, out of its line, which goes to the end."""
        running = sum(line.running for line in self.lines.values())
        free_bytes = self.budget_bytes - sum(line.size_bytes for line in self.lines.values())
        if running == self.most_threads:
            return None
        for whose, line in list(self.lines.items()):
            while line.waiting and line.waiting[0].done.cancelled():
                line.waiting.popleft()
            if not line.waiting:
                if not line.running:
                    del self.lines[whose]
                continue
            size_bytes = line.waiting[0].turn.size_bytes
            within_share = (line.running + 1) * 2 <= self.most_threads and (
                (line.size_bytes + size_bytes) * 2 <= self.budget_bytes
            )
            if line.running and not within_share:
                continue
            if running and size_bytes > free_bytes:
                return None
            self.lines.move_to_end(whose)
            return line.waiting.popleft()
        return None

    def do(self, work: ImageTask) -> None:
        began = time.monotonic()
        if work.done.set_running_or_notify_cancel():
            try:
                made = work.call()
            except BaseException as error:  # noqa: BLE001  it is the caller's, whatever it is
                work.done.set_exception(error)
            else:
                work.done.set_result(made)
        with self.lock:
            line = self.lines[work.turn.tenant, work.turn.accepted]
            line.running -= 1
            line.size_bytes -= work.turn.size_bytes
            self.pace_s += PACE * (time.monotonic() - began - self.pace_s)
            self.serve()

    def close(self) -> None:
        """What has begun is done; who waits is told that nothing will come."""
        with self.lock:
            for line in self.lines.values():
                for work in line.waiting:
                    work.done.cancel()
        self.threads.shutdown()
