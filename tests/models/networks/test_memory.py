import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import PATIENCE_S

from safelight.errors import OutOfMemory
from safelight.models.networks import memory as module
from safelight.models.networks.memory import Allocation, Lease, Memory

T = TypeVar("T")
OF_THE_LINE_S = 10


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect() -> Iterator[None]:
    """There are no weights here, and collecting garbage among all of torch's objects takes a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "release", lambda: None)
        yield


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Shelf:
    """Weights of made-up sizes, and which of them were dropped."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        self.dropped: list[str] = []

    def __getitem__(self, name: str) -> Allocation:
        return Allocation(
            key=name,
            kind="model",
            name=name,
            size_bytes=self.sizes[name],
            drop=lambda: self.dropped.append(name),
        )


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    return asyncio.run(bounded())


def held(memory: Memory) -> set[str]:
    return {one.name for one in memory.loaded()}


async def soon_done(task: "asyncio.Task[Lease]") -> bool:
    """Whether it is let in without anything else having to happen."""
    await asyncio.wait([task], timeout=0.05)
    return task.done()


def test_the_least_recently_used_goes_first() -> None:
    memory, shelf = Memory(10), Shelf(a=4, b=4, c=4)

    async def work() -> None:
        for name in ("a", "b", "a", "c"):
            (await memory.acquire([shelf[name]])).end()

    run(work())
    assert shelf.dropped == ["b"]
    assert held(memory) == {"a", "c"}
    assert (memory.num_loaded, memory.num_dropped) == (3, 1)


def test_no_more_is_evicted_than_necessary() -> None:
    memory, shelf = Memory(10), Shelf(a=2, b=2, c=2, d=5)

    async def work() -> None:
        for name in ("a", "b", "c", "d"):
            (await memory.acquire([shelf[name]])).end()

    run(work())
    assert shelf.dropped == ["a"]


def test_weights_in_use_are_never_evicted_and_others_wait() -> None:
    memory, shelf = Memory(10), Shelf(a=6, b=6)

    async def work() -> None:
        first, second = await memory.acquire([shelf["a"]]), await memory.acquire([shelf["a"]])
        waiting = asyncio.create_task(memory.acquire([shelf["b"]]))
        assert not await soon_done(waiting)
        first.end()
        first.end()  # once is enough
        assert not await soon_done(waiting)
        assert shelf.dropped == []
        second.end()
        await waiting
        assert shelf.dropped == ["a"]

    run(work())


def test_jobs_of_a_loaded_model_pass_one_that_waits_until_its_patience_ends() -> None:
    clock, shelf = Clock(), Shelf(a=6, b=6)
    memory = Memory(10, patience_s=OF_THE_LINE_S, clock=clock)

    async def work() -> None:
        lease = await memory.acquire([shelf["a"]])
        waiting = asyncio.create_task(memory.acquire([shelf["b"]]))
        assert not await soon_done(waiting)
        clock.now_s = OF_THE_LINE_S - 1
        passing = await memory.acquire([shelf["a"]])
        clock.now_s = OF_THE_LINE_S
        behind = asyncio.create_task(memory.acquire([shelf["a"]]))
        assert not await soon_done(behind)
        lease.end()
        passing.end()
        await waiting
        assert not await soon_done(behind)
        waiting.result().end()
        await behind

    run(work())


def test_a_model_larger_than_the_budget_is_loaded_alone_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    memory, shelf = Memory(10, max_bytes=20), Shelf(a=4, large=15, larger=21)

    async def work() -> None:
        lease = await memory.acquire([shelf["a"]])
        waiting = asyncio.create_task(memory.acquire([shelf["large"]]))
        assert not await soon_done(waiting)
        lease.end()
        await waiting
        waiting.result().end()
        with pytest.raises(OutOfMemory, match="model larger takes"):
            await memory.acquire([shelf["larger"]])

    with caplog.at_level(logging.WARNING):
        run(work())
    assert "model large takes" in caplog.text
    assert held(memory) == {"large"}


def test_a_job_acquires_all_its_weights_at_once() -> None:
    """One after the other, two jobs could each hold what the other waits for."""
    memory, shelf = Memory(10), Shelf(a=4, b=4, x=2, y=2)

    async def work() -> None:
        first = await memory.acquire([shelf["a"], shelf["x"]])
        waiting = asyncio.create_task(memory.acquire([shelf["b"], shelf["y"]]))
        assert not await soon_done(waiting)
        assert held(memory) == {"a", "x"}
        first.end()
        await waiting

    run(work())


def test_a_cancelled_wait_leaves_no_request_behind() -> None:
    memory, shelf = Memory(10), Shelf(a=6, b=6, c=6)

    async def work() -> None:
        lease = await memory.acquire([shelf["a"]])
        waiting, next_one = (asyncio.create_task(memory.acquire([shelf[name]])) for name in ("b", "c"))
        assert not await soon_done(next_one)
        waiting.cancel()
        lease.end()
        await next_one

    run(work())
    assert held(memory) == {"c"}
    assert not memory.waiting


def test_weights_that_failed_to_load_take_no_memory() -> None:
    memory, shelf = Memory(10), Shelf(a=6)

    async def work() -> None:
        one, other = await memory.acquire([shelf["a"]]), await memory.acquire([shelf["a"]])
        one.end(forget=True)
        assert held(memory) == {"a"}
        other.end(forget=True)

    run(work())
    assert held(memory) == set()


def test_all_unused_weights_can_be_evicted_at_once() -> None:
    memory, shelf = Memory(10), Shelf(a=4, b=4)

    async def work() -> None:
        (await memory.acquire([shelf["a"]])).end()
        await memory.acquire([shelf["b"]])
        memory.drop_idle()

    run(work())
    assert held(memory) == {"b"}


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=30))
def test_the_budget_holds_and_no_weights_in_use_are_evicted(steps: list[tuple[str, bool]]) -> None:
    """Whatever is taken and ended, in any order."""
    memory, shelf = Memory(10), Shelf(a=1, b=3, c=4, d=6, e=10)

    async def work() -> None:
        tasks: list[asyncio.Task[Lease]] = []
        for name, ends in steps:
            tasks.append(asyncio.create_task(memory.acquire([shelf[name]])))
            await asyncio.sleep(0)
            if ends and tasks[0].done():
                tasks.pop(0).result().end()
            assert memory.used_bytes <= 10
        while tasks:
            ready, _ = await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            for task in ready:
                lease = task.result()
                assert lease.allocations[0].name in held(memory)
                lease.end()
                tasks.remove(task)

    run(work())
    assert not memory.waiting
    assert memory.used_bytes <= 10
