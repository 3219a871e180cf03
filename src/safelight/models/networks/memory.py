"""Weights in memory within a budget: shared by jobs, kept after their use, dropped when others need the room.

    lease = await memory.take(needs)    all that a job needs may be in memory now, and stays as long as the job
    lease.end()                         one user fewer

What nobody uses goes first, the least recently used before the others; what a job uses never goes. A job whose weights
do not fit beside those in use waits. Others may pass it for `PATIENCE_S`: jobs of a model that is in memory would
otherwise wait for a model that is not, and both would be loaded in turn for every job. After that time newcomers wait
behind it, so that a busy model cannot shut another out. All that a job needs is taken at once, so that no two jobs can
wait for each other. A model that is larger than the whole budget is loaded when nothing else is in use, with a warning.
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
    """What they are; two jobs with one key share them."""
    kind: str
    """`model`, `lora`, ...; for messages and metrics."""
    name: str
    size_bytes: int
    """In the format in which they will be kept; what is made of them for speed included."""
    drop: Callable[[], None]
    """Forget them: nobody uses them."""


@dataclass(slots=True)
class Loaded:
    """Weights that are in memory, or about to be."""

    allocation: Allocation
    users: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """One holding, to be shown."""

    kind: str
    name: str
    size_bytes: int
    in_use: bool


@dataclass(slots=True, eq=False)
class Waiter:
    allocations: Sequence[Allocation]
    since: float
    granted: "Future[bool]" = field(default_factory=Future[bool])
    """Whether anything was dropped for it."""

    def __post_init__(self) -> None:
        # From here on only the ledger decides: whoever stops waiting says so with `leave`.
        self.granted.set_running_or_notify_cancel()


class Memory:
    """The ledger. Holds no weights itself; may be used from any thread and event loop."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        most_bytes: int | None = None,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`most_bytes` is all that the device has: more is refused, whatever the budget."""
        self.budget_bytes = budget_bytes
        self.most_bytes = most_bytes
        self.patience_s = patience_s
        self.clock = clock
        self.lock = threading.Lock()
        self.holdings: OrderedDict[Hashable, Loaded] = OrderedDict()
        """The least recently used first."""
        self.line: list[Waiter] = []
        self.num_loaded, self.num_dropped = 0, 0
        """Since the start."""

    async def take(self, allocations: Sequence[Allocation]) -> "Lease":
        """Wait until there is room, and use them all.

        Raises:
            OutOfMemory: more than the device has.
        """
        allocations = list({allocation.key: allocation for allocation in allocations}.values())
        self.require_possible(allocations)
        with self.lock:
            waiter = Waiter(allocations, self.clock())
            self.line.append(waiter)
            self.serve()
        try:
            dropped = await asyncio.wrap_future(waiter.granted)
            if dropped:
                # The room is free only once what was dropped is gone.
                await asyncio.to_thread(release)
        except BaseException:
            self.leave(waiter)
            raise
        return Lease(self, allocations)

    def require_possible(self, allocations: Sequence[Allocation]) -> None:
        wanted = sum(allocation.size_bytes for allocation in allocations)
        if self.most_bytes is not None and wanted > self.most_bytes:
            raise OutOfMemory(
                f"{named(allocations)} takes {wanted / GIB:.1f} GiB, and there are {self.most_bytes / GIB:.1f} in all; "
                "use a smaller model, or half precision (dtype) where the device is fast with it"
            )

    def serve(self) -> None:
        """Let in who may come in; called with the lock held."""
        for waiter in list(self.line):
            dropped = self.evict(waiter.allocations)
            if dropped is not None:
                self.line.remove(waiter)
                self.use(waiter.allocations)
                waiter.granted.set_result(dropped)
            elif self.clock() - waiter.since >= self.patience_s:
                return

    def evict(self, allocations: Sequence[Allocation]) -> bool | None:
        """Drop what must go, and say whether anything did; None where what is in use leaves too little room."""
        keys = {allocation.key for allocation in allocations}
        wanted = sum(allocation.size_bytes for allocation in allocations if allocation.key not in self.holdings)
        others = [holding for key, holding in self.holdings.items() if key not in keys]
        idle = [holding for holding in others if not holding.users]
        over = self.held_bytes + wanted - self.budget_bytes
        if not wanted or over <= 0:
            return False
        if over > sum(holding.allocation.size_bytes for holding in idle):
            if len(idle) < len(others):
                return None
            total = sum(allocation.size_bytes for allocation in allocations)
            log.warning(
                "%s takes %.2f GiB, more than the budget of %.2f: it is loaded alone (SAFELIGHT_MODEL_MEMORY_GB)",
                named(allocations),
                total / GIB,
                self.budget_bytes / GIB,
            )
        for holding in idle:
            if over <= 0:
                break
            self.drop(holding)
            over -= holding.allocation.size_bytes
        return bool(idle)

    def use(self, allocations: Iterable[Allocation]) -> None:
        for allocation in allocations:
            if allocation.key not in self.holdings:
                self.holdings[allocation.key] = Loaded(allocation)
                self.num_loaded += 1
            self.holdings[allocation.key].users += 1
            self.holdings.move_to_end(allocation.key)

    def end(self, allocations: Iterable[Allocation], *, forget: bool) -> None:
        with self.lock:
            for allocation in allocations:
                holding = self.holdings[allocation.key]
                holding.users -= 1
                if forget and not holding.users:
                    self.drop(holding)
            self.serve()

    def leave(self, waiter: Waiter) -> None:
        """A caller that waits no longer."""
        with self.lock:
            if waiter in self.line:
                self.line.remove(waiter)
                self.serve()
                return
        self.end(waiter.allocations, forget=True)

    def drop(self, holding: Loaded) -> None:
        del self.holdings[holding.allocation.key]
        holding.allocation.drop()
        self.num_dropped += 1
        log.info("%s %s was dropped from memory", holding.allocation.kind, holding.allocation.name)

    def drop_idle(self) -> None:
        """Drop all that nobody uses."""
        with self.lock:
            idle = [holding for holding in self.holdings.values() if not holding.users]
            for holding in idle:
                self.drop(holding)
            self.serve()
        if idle:
            release()

    @property
    def held_bytes(self) -> int:
        return sum(holding.allocation.size_bytes for holding in self.holdings.values())

    def held(self) -> list[LoadedWeights]:
        with self.lock:
            return [
                LoadedWeights(
                    kind=one.kind,
                    name=one.name,
                    size_bytes=one.size_bytes,
                    in_use=holding.users > 0,
                )
                for holding in self.holdings.values()
                for one in [holding.allocation]
            ]


@dataclass(slots=True, eq=False)
class Lease:
    """The right to use some weights; ended once, however often it is asked to."""

    memory: Memory
    allocations: Sequence[Allocation]
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_work: int = 0
    """Threads that load these weights, or use them."""
    ended: bool = False
    forget: bool = False

    def during(self, work: Callable[P, T]) -> Callable[P, T]:
        """This work, for a thread: the lease lasts until it is done, although whoever waits for it may have left."""

        def lasting(*args: P.args, **named: P.kwargs) -> T:
            with self.lock:
                if self.ended:
                    raise CancelledError
                self.at_work += 1
            try:
                return work(*args, **named)
            except BaseException:
                self.forget = True
                raise
            finally:
                with self.lock:
                    self.at_work -= 1
                    last = self.ended and not self.at_work
                if last:
                    self.memory.end(self.allocations, forget=self.forget)

        return lasting

    def end(self, *, forget: bool = False) -> None:
        """`forget`: they could not be loaded, so they hold no room."""
        with self.lock:
            if self.ended:
                return
            self.ended = True
            self.forget = self.forget or forget
            last = not self.at_work
        if last:
            self.memory.end(self.allocations, forget=self.forget)


def named(allocations: Sequence[Allocation]) -> str:
    return " with ".join(f"{allocation.kind} {allocation.name}" for allocation in allocations)


def release() -> None:
    """Networks hold themselves through their hooks, so that only the collector frees them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
