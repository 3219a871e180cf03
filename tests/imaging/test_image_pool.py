"""Few threads, a budget of memory, and turns that are fair, however many ask."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import wait_in_loop_until

from safelight.errors import TooManyRequests
from safelight.imaging.image_pool import MAX_WAITING_PER_TENANT, ImagePool, MemoryClaim

BUDGET = 100
Begin = Callable[..., Coroutine[Any, Any, None]]


@asynccontextmanager
async def closed_gate(room: ImagePool) -> AsyncGenerator[tuple[Begin, list[str], threading.Event], None]:
    """What begins work that waits for the gate, the names of what has begun, and the gate."""
    begun: list[str] = []
    gate, tasks = threading.Event(), list[asyncio.Task[None]]()

    def work(name: str) -> None:
        begun.append(name)
        gate.wait()

    async def begin(name: str, size_bytes: int = 1, tenant: str = "", *, accepted: bool = False) -> None:
        turn = MemoryClaim(tenant=tenant, size_bytes=size_bytes, accepted=accepted)
        tasks.append(asyncio.create_task(room.work(turn, work, name)))
        await asyncio.sleep(0)

    try:
        yield begin, begun, gate
    finally:
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        room.close()


def room_of(threads: int) -> ImagePool:
    return ImagePool("test", threads=threads, budget_bytes=BUDGET)


def test_one_tenant_cannot_have_all_threads_nor_all_memory() -> None:
    async def play() -> None:
        async with closed_gate(room_of(4)) as (begin, begun, _gate):
            for number in range(10):
                await begin(f"joe {number}", tenant="joe")
            await begin("ann", tenant="ann")
            await wait_in_loop_until(lambda: "ann" in begun)
            assert sorted(begun) == ["ann", "joe 0", "joe 1"]
        async with closed_gate(room_of(4)) as (begin, begun, _gate):
            await begin("large", BUDGET // 2, "joe")
            await begin("larger", BUDGET // 2, "joe")
            await begin("small", BUDGET // 2, "ann")
            await wait_in_loop_until(lambda: "small" in begun)
            assert begun == ["large", "small"]

    asyncio.run(play())


def test_tenants_take_turns_and_accepted_jobs_have_their_own() -> None:
    async def play() -> None:
        async with closed_gate(room_of(1)) as (begin, begun, gate):
            await begin("first", tenant="joe")
            for number in range(3):
                await begin(f"joe {number}", tenant="joe")
            await begin("ann", tenant="ann")
            await begin("joe's job", tenant="joe", accepted=True)
            gate.set()
            await wait_in_loop_until(lambda: len(begun) == 6)
            assert begun == ["first", "joe 0", "ann", "joe's job", "joe 1", "joe 2"]

    asyncio.run(play())


def test_a_task_larger_than_the_budget_runs_alone() -> None:
    async def play() -> None:
        async with closed_gate(room_of(4)) as (begin, begun, gate):
            await begin("small", tenant="ann")
            await begin("huge", 5 * BUDGET, "joe")
            await begin("late", tenant="eve")
            await wait_in_loop_until(lambda: "small" in begun)
            assert begun == ["small"], "nobody overtakes what waits for memory"
            gate.set()
            await wait_in_loop_until(lambda: len(begun) == 3)
            assert begun == ["small", "huge", "late"]

    asyncio.run(play())


def test_a_full_queue_refuses_with_a_retry_time_but_never_an_accepted_job() -> None:
    async def play() -> None:
        room = room_of(2)
        async with closed_gate(room) as (begin, begun, gate):
            for number in range(MAX_WAITING_PER_TENANT + 1):
                await begin(str(number), tenant="joe")
            with pytest.raises(TooManyRequests) as refused:
                await room.work(MemoryClaim(tenant="joe", size_bytes=1), len, "")
            assert refused.value.retry_after_s >= 1
            await begin("ann", tenant="ann")
            for number in range(2 * MAX_WAITING_PER_TENANT):
                await begin(f"job {number}", tenant="joe", accepted=True)
            gate.set()
            await wait_in_loop_until(lambda: len(begun) == 3 * MAX_WAITING_PER_TENANT + 2)

    asyncio.run(play())


def test_a_cancelled_task_leaves_the_queue() -> None:
    async def play() -> None:
        room = room_of(1)
        async with closed_gate(room) as (begin, begun, gate):
            await begin("first")
            waiting = asyncio.create_task(room.work(MemoryClaim(size_bytes=1), begun.append, "left"))
            await asyncio.sleep(0)
            waiting.cancel()
            await begin("last")
            gate.set()
            await wait_in_loop_until(lambda: "last" in begun)
            assert begun == ["first", "last"]

    asyncio.run(play())


def test_errors_are_raised_in_the_caller() -> None:
    async def play() -> None:
        room = room_of(1)
        with pytest.raises(ZeroDivisionError):
            await room.work(MemoryClaim(size_bytes=1), lambda: 1 / 0)
        assert await room.work(MemoryClaim(size_bytes=1), divmod, 7, 2) == (3, 1)
        room.close()

    asyncio.run(play())


Asked = st.tuples(st.integers(0, 2 * BUDGET), st.sampled_from("abc"), st.booleans())


@given(st.lists(Asked, max_size=30), st.integers(1, 4))
def test_memory_and_threads_are_never_exceeded(asked: list[tuple[int, str, bool]], threads: int) -> None:
    room = room_of(threads)
    lock = threading.Lock()
    held: list[int] = []
    most: list[tuple[int, int]] = []

    def work(size_bytes: int) -> int:
        with lock:
            held.append(size_bytes)
            most.append((len(held), sum(held)))
        with lock:
            held.remove(size_bytes)
        return size_bytes

    async def play() -> list[int]:
        turns = [MemoryClaim(tenant=tenant, size_bytes=size, accepted=accepted) for size, tenant, accepted in asked]
        return await asyncio.gather(*(room.work(turn, work, turn.size_bytes) for turn in turns))

    assert asyncio.run(play()) == [size for size, _tenant, _accepted in asked]
    room.close()
    assert all(count <= threads and (size <= BUDGET or count == 1) for count, size in most)
    assert not any(line.running for line in room.queues.values())
