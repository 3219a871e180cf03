"""A memory budget for weights: shared by jobs, cached after use, evicted when others need the space.

    lease = await memory.acquire(allocations)   all weights of a job may be loaded now, and stay while the lease lasts
    lease.end()                                 one user fewer

Unused weights are evicted, the least recently used first; weights in use never are. A job whose weights do not fit
beside those in use waits. For `PATIENCE_S` other jobs may overtake it: otherwise jobs of a loaded model would wait for
a model that is not loaded, and both would be loaded in turn for every job. After that time newcomers wait behind it,
so that a busy model cannot starve another. A job acquires all its weights at once, so no two jobs can deadlock. A
model larger than the whole budget is loaded when nothing else is in use, with a warning.
"""

import asyncio
import gc
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch

from safelight.errors import OutOfMemory

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
PATIENCE_S = 10.0
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Weights that a job uses."""

    key: Hashable
    """Identity of the weights; jobs with the same key share them."""
    kind: str
    """`model`, `lora`, ...; for messages and metrics."""
    name: str
    size_bytes: int
    """In the dtype in which they are stored, including copies made for speed."""
    drop: Callable[[], None]
    """Called when they are evicted, to drop the references to them."""


@dataclass(slots=True)
class Loaded:
    """Weights that are in memory or being loaded."""

    allocation: Allocation
    users: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """One entry, for display."""

    kind: str
    name: str
    size_bytes: int
    in_use: bool


@dataclass(slots=True, eq=False)
class Waiter:
    allocations: Sequence[Allocation]
    since: float
    granted: "Future[bool]" = field(default_factory=Future[bool])
    """The result: whether anything was evicted for it."""

    def __post_init__(self) -> None:
        # The future cannot be cancelled from outside: a caller that stops waiting calls `Memory.cancel`.
        self.granted.set_running_or_notify_cancel()


class Memory:
    """The ledger of loaded weights. It holds no weights itself; usable from any thread and event loop."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        max_bytes: int | None = None,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_bytes` is the device's total memory: larger requests are refused, whatever the budget."""
        self.budget_bytes = budget_bytes
        self.max_bytes = max_bytes
        self.patience_s = patience_s
        self.clock = clock
        self.lock = threading.Lock()
        self.entries: OrderedDict[Hashable, Loaded] = OrderedDict()
        """Ordered by use, the least recently used first."""
        self.waiting: list[Waiter] = []
        self.num_loaded, self.num_dropped = 0, 0
        """Counts since the start."""

    async def acquire(self, allocations: Sequence[Allocation]) -> "Lease":
        """Wait until all of them fit in memory, and return a lease on them.

        Raises:
            OutOfMemory: they are larger than the device's memory.
        """
        allocations = list({allocation.key: allocation for allocation in allocations}.values())
        self.require_possible(allocations)
        with self.lock:
            waiter = Waiter(allocations, self.clock())
            self.waiting.append(waiter)
            self.admit()
        try:
            dropped = await asyncio.wrap_future(waiter.granted)
            if dropped:
                # The space is free only once the evicted weights are collected.
                await asyncio.to_thread(release)
        except BaseException:
            self.cancel(waiter)
            raise
        return Lease(self, allocations)

    def require_possible(self, allocations: Sequence[Allocation]) -> None:
        wanted = sum(allocation.size_bytes for allocation in allocations)
        if self.max_bytes is not None and wanted > self.max_bytes:
            raise OutOfMemory(
                f"{describe(allocations)} takes {wanted / GIB:.1f} GiB; the device has {self.max_bytes / GIB:.1f} "
                "in all; use a smaller model, or half precision (dtype) where the device is fast with it"
            )

    def admit(self) -> None:
        """Grant every waiting request that fits; call with the lock held."""
        for waiter in list(self.waiting):
            dropped = self.make_space(waiter.allocations)
            if dropped is not None:
                self.waiting.remove(waiter)
                self.use(waiter.allocations)
                waiter.granted.set_result(dropped)
            elif self.clock() - waiter.since >= self.patience_s:
                return

    def make_space(self, allocations: Sequence[Allocation]) -> bool | None:
        """Evict as much as needed. Returns whether anything was evicted; None if too much memory is in use."""
        keys = {allocation.key for allocation in allocations}
        wanted = sum(allocation.size_bytes for allocation in allocations if allocation.key not in self.entries)
        others = [entry for key, entry in self.entries.items() if key not in keys]
        idle = [entry for entry in others if not entry.users]
        over = self.used_bytes + wanted - self.budget_bytes
        if not wanted or over <= 0:
            return False
        if over > sum(entry.allocation.size_bytes for entry in idle):
            if len(idle) < len(others):
                return None
            total = sum(allocation.size_bytes for allocation in allocations)
            log.warning(
                "%s takes %.2f GiB, more than the budget of %.2f: it is loaded alone (SAFELIGHT_MODEL_MEMORY_GB)",
                describe(allocations),
                total / GIB,
                self.budget_bytes / GIB,
            )
        for entry in idle:
            if over <= 0:
                break
            self.drop(entry)
            over -= entry.allocation.size_bytes
        return bool(idle)

    def use(self, allocations: Iterable[Allocation]) -> None:
        for allocation in allocations:
            if allocation.key not in self.entries:
                self.entries[allocation.key] = Loaded(allocation)
                self.num_loaded += 1
            self.entries[allocation.key].users += 1
            self.entries.move_to_end(allocation.key)

    def end(self, allocations: Iterable[Allocation], *, forget: bool) -> None:
        with self.lock:
            for allocation in allocations:
                entry = self.entries[allocation.key]
                entry.users -= 1
                if forget and not entry.users:
                    self.drop(entry)
            self.admit()

    def cancel(self, waiter: Waiter) -> None:
        """Withdraw a waiting request, or end what was granted to it."""
        with self.lock:
            if waiter in self.waiting:
                self.waiting.remove(waiter)
                self.admit()
                return
        self.end(waiter.allocations, forget=True)

    def drop(self, entry: Loaded) -> None:
        del self.entries[entry.allocation.key]
        entry.allocation.drop()
        self.num_dropped += 1
        log.info("%s %s was dropped from memory", entry.allocation.kind, entry.allocation.name)

    def drop_idle(self) -> None:
        """Evict everything that is not in use."""
        with self.lock:
            idle = [entry for entry in self.entries.values() if not entry.users]
            for entry in idle:
                self.drop(entry)
            self.admit()
        if idle:
            release()

    @property
    def used_bytes(self) -> int:
        return sum(entry.allocation.size_bytes for entry in self.entries.values())

    def loaded(self) -> list[LoadedWeights]:
        with self.lock:
            return [
                LoadedWeights(
                    kind=one.kind,
                    name=one.name,
                    size_bytes=one.size_bytes,
                    in_use=entry.users > 0,
                )
                for entry in self.entries.values()
                for one in [entry.allocation]
            ]


@dataclass(slots=True, eq=False)
class Lease:
    """The right to use some weights. `end` may be called more than once."""

    memory: Memory
    allocations: Sequence[Allocation]
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: int = 0
    """Number of threads that load or use these weights."""
    ended: bool = False
    forget: bool = False

    def during(self, work: Callable[P, T]) -> Callable[P, T]:
        """Wrap work for a thread: the lease lasts until it is done, even if its caller is cancelled."""

        def run_holding(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.lock:
                if self.ended:
                    raise CancelledError
                self.threads += 1
            try:
                return work(*args, **kwargs)
            except BaseException:
                self.forget = True
                raise
            finally:
                with self.lock:
                    self.threads -= 1
                    last = self.ended and not self.threads
                if last:
                    self.memory.end(self.allocations, forget=self.forget)

        return run_holding

    def end(self, *, forget: bool = False) -> None:
        """End the lease. With `forget`, the weights could not be loaded and take no memory."""
        with self.lock:
            if self.ended:
                return
            self.ended = True
            self.forget = self.forget or forget
            last = not self.threads
        if last:
            self.memory.end(self.allocations, forget=self.forget)


def describe(allocations: Sequence[Allocation]) -> str:
    return " with ".join(f"{allocation.kind} {allocation.name}" for allocation in allocations)


def release() -> None:
    """Collect garbage: networks are in reference cycles through their hooks, so only the collector frees them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
