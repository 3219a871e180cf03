"""A thread pool for image work, with a memory budget and fair scheduling between tenants.

    result = await pool.work(MemoryClaim(tenant="joe", size_bytes=4 * pixels), function, argument, ...)

Each tenant has a queue, and a second one for its accepted jobs; the queues are served round-robin, one task at a time.
A queue gets at most half of the threads and of the memory; a larger task starts when nothing else of its queue runs.
If the next task needs more memory than is free, the others wait for it, so that small tasks cannot starve large ones.
A full queue refuses tasks, except those of accepted jobs.
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
SMOOTHING = 0.2
"""Weight of the last task in the moving average of the duration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryClaim:
    """The tenant of a task, and the memory it needs."""

    size_bytes: int
    tenant: str = ""
    accepted: bool = False
    """Whether it belongs to an accepted job."""


@dataclass(slots=True, eq=False)
class ImageTask:
    claim: MemoryClaim
    call: Callable[[], Any]
    done: "Future[Any]" = field(default_factory=Future[Any])


@dataclass(slots=True)
class TenantQueue:
    waiting: deque[ImageTask] = field(default_factory=deque[ImageTask])
    running: int = 0
    size_bytes: int = 0
    """Memory of the running tasks."""


class ImagePool:
    """The pool; usable from any thread and event loop."""

    def __init__(self, name: str, *, threads: int, budget_bytes: int) -> None:
        self.name = name
        self.max_threads = threads
        self.budget_bytes = budget_bytes
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.lock = threading.Lock()
        self.queues: OrderedDict[tuple[str, bool], TenantQueue] = OrderedDict()
        """By tenant and whether for accepted jobs; the next to be served comes first."""
        self.mean_duration_s = 1.0

    async def work(self, claim: MemoryClaim, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread when its turn comes, and return its result.

        Raises:
            TooManyRequests: the queue is full.
        """
        task = ImageTask(claim, partial(contextvars.copy_context().run, partial(function, *args, **kwargs)))
        with self.lock:
            if not claim.accepted:
                self.require_free_slot(claim.tenant)
            self.queues.setdefault((claim.tenant, claim.accepted), TenantQueue()).waiting.append(task)
            self.start_waiting()
        return await asyncio.wrap_future(task.done)

    def require_free_slot(self, tenant: str) -> None:
        num_waiting = {tenant: len(queue.waiting) for (tenant, accepted), queue in self.queues.items() if not accepted}
        if num_waiting.get(tenant, 0) >= MAX_WAITING_PER_TENANT or sum(num_waiting.values()) >= MAX_WAITING:
            raise TooManyRequests(
                f"the queue for {self.name} is full: {sum(num_waiting.values())} requests wait, "
                f"{num_waiting.get(tenant, 0)} of them yours",
                retry_after_s=math.ceil(sum(num_waiting.values()) * self.mean_duration_s / self.max_threads),
                code="pictures_busy",
            )

    def start_waiting(self) -> None:
        """Start every task that can start; call with the lock held."""
        while task := self.next_task():
            queue = self.queues[task.claim.tenant, task.claim.accepted]
            queue.running += 1
            queue.size_bytes += task.claim.size_bytes
            self.threads.submit(self.execute, task)

    def next_task(self) -> ImageTask | None:
        """Remove and return the next task, and move its queue to the end."""
        running = sum(queue.running for queue in self.queues.values())
        free_bytes = self.budget_bytes - sum(queue.size_bytes for queue in self.queues.values())
        if running == self.max_threads:
            return None
        for key, queue in list(self.queues.items()):
            while queue.waiting and queue.waiting[0].done.cancelled():
                queue.waiting.popleft()
            if not queue.waiting:
                if not queue.running:
                    del self.queues[key]
                continue
            size_bytes = queue.waiting[0].claim.size_bytes
            within_share = (queue.running + 1) * 2 <= self.max_threads and (
                (queue.size_bytes + size_bytes) * 2 <= self.budget_bytes
            )
            if queue.running and not within_share:
                continue
            if running and size_bytes > free_bytes:
                return None
            self.queues.move_to_end(key)
            return queue.waiting.popleft()
        return None

    def execute(self, task: ImageTask) -> None:
        started = time.monotonic()
        if task.done.set_running_or_notify_cancel():
            try:
                result = task.call()
            except BaseException as error:  # noqa: BLE001  raised again in the caller
                task.done.set_exception(error)
            else:
                task.done.set_result(result)
        with self.lock:
            queue = self.queues[task.claim.tenant, task.claim.accepted]
            queue.running -= 1
            queue.size_bytes -= task.claim.size_bytes
            self.mean_duration_s += SMOOTHING * (time.monotonic() - started - self.mean_duration_s)
            self.start_waiting()

    def close(self) -> None:
        """Cancel waiting tasks, and wait for running ones."""
        with self.lock:
            for queue in self.queues.values():
                for task in queue.waiting:
                    task.done.cancel()
        self.threads.shutdown()
