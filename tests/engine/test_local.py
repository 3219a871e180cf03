"""The engine behind asyncio: one thread, any number of event loops, and every caller gets an answer."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, cast

import pytest
import torch
from PIL import Image
from tests.fakes import ModelLoader, draw, psnr, spec_for
from tests.patience import PATIENCE_S, wait_in_loop_until, wait_until

from safelight.engine.loader import LocalLoader
from safelight.engine.local import LocalBackend
from safelight.errors import EngineStopped, SafelightError, UnknownModel
from safelight.events import Cancelled, Decoded, Event, Failed, Queued, Started, Stepped
from safelight.models.backends.denoiser import Denoiser
from safelight.models.backends.eager import eager_denoiser
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Memory
from safelight.spec import Denoised

Models = Callable[[str], Model]


@pytest.fixture
def tiny(model: Models) -> Model:
    return model("sd1")


def open_backend(*models: Model, denoiser_for: Callable[[Model], Denoiser] = eager_denoiser) -> LocalBackend:
    by_digest = {model.digest: model for model in models}
    return LocalBackend(
        ModelLoader(lambda spec: by_digest[spec.model_digest]),
        denoiser_for=denoiser_for,
        budget_megapixels=lambda _model: 1.0,
    )


@pytest.fixture
def backend(tiny: Model, model: Models) -> Iterator[LocalBackend]:
    backend = open_backend(tiny, model("sdxl"))
    yield backend
    backend.close()


async def all_events(backend: LocalBackend, spec: Denoised) -> list[Event]:
    async with asyncio.timeout(PATIENCE_S), aclosing(backend.submit(spec, {})) as events:
        return [event async for event in events]


def picture(events: list[Event]) -> Image.Image:
    assert isinstance(events[-1], Decoded)
    return events[-1].image


def slowly(model: Model) -> Denoiser:
    denoise = eager_denoiser(model)

    def denoise_slowly(*given: Any) -> torch.Tensor:
        time.sleep(0.02)
        return denoise(*given)

    return denoise_slowly


def test_events_reach_the_caller_in_order(backend: LocalBackend, tiny: Model) -> None:
    events = asyncio.run(all_events(backend, spec_for(tiny)))
    assert [type(event) for event in events] == [Queued, Started, Stepped, Stepped, Stepped, Decoded]
    assert len({event.job_id for event in events}) == 1


def test_jobs_of_one_loop_share_calls(tiny: Model) -> None:
    async def together() -> list[list[Event]]:
        return await asyncio.gather(*(all_events(backend, spec_for(tiny, seed=seed, steps=9)) for seed in range(4)))

    backend = open_backend(tiny, denoiser_for=slowly)
    try:
        results = asyncio.run(together())
    finally:
        backend.close()
    assert max(event.batch_rows for events in results for event in events if isinstance(event, Stepped)) == 8


def test_loops_in_many_threads_are_served_at_once(backend: LocalBackend, tiny: Model, model: Models) -> None:
    """Two models, and four threads with one event loop each."""
    specs = [spec_for(model(kind), seed=seed) for seed in range(2) for kind in ("sd1", "sdxl")]
    results: dict[int, list[Event]] = {}

    def one(number: int) -> None:
        results[number] = asyncio.run(all_events(backend, specs[number]))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(specs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    for number, spec in enumerate(specs):
        alone = draw(spec, model(["sd1", "sdxl"][number % 2]))
        assert psnr(picture(results[number]), alone) >= 60  # the bits change with the batch; see test_company


def test_others_find_a_thread_although_many_jobs_wait_for_one_model(tiny: Model) -> None:
    """As while the server accepts requests: it checks their sizes and names in asyncio's few default threads."""
    loading, go_on = threading.Semaphore(0), threading.Event()

    def load(_spec: Denoised) -> Model:
        loading.release()
        assert go_on.wait(PATIENCE_S)
        return tiny

    loader = LocalLoader(cast(Any, None), cast(Any, None), cast(Any, None), {}, Memory(10**12))
    loader.allocations = lambda spec: []
    loader.model = load
    backend = LocalBackend(loader, denoiser_for=eager_denoiser, budget_megapixels=lambda _model: 1.0)

    async def ask() -> None:
        jobs = [asyncio.create_task(all_events(backend, spec_for(tiny, seed=seed, steps=1))) for seed in range(40)]
        try:
            await wait_in_loop_until(lambda: loading.acquire(blocking=False))
            async with asyncio.timeout(PATIENCE_S):
                assert await asyncio.to_thread(lambda: "looked at") == "looked at"
        finally:
            go_on.set()
        for events in await asyncio.gather(*jobs):
            assert isinstance(events[-1], Decoded)

    try:
        asyncio.run(ask())
    finally:
        backend.close()


def test_closing_the_generator_cancels_the_job(tiny: Model) -> None:
    backend = open_backend(tiny, denoiser_for=slowly)

    async def leave_early() -> None:
        async with aclosing(backend.submit(spec_for(tiny, steps=500), {})) as events:
            async for event in events:
                if isinstance(event, Stepped):
                    break
        await wait_in_loop_until(lambda: not backend.engine.live)

    try:
        asyncio.run(leave_early())
        assert not backend.listeners
    finally:
        backend.close()


def test_cancelling_by_id_ends_the_events(tiny: Model) -> None:
    backend = open_backend(tiny, denoiser_for=slowly)

    async def cancel_midway() -> Event:
        last: Event | None = None
        async with asyncio.timeout(PATIENCE_S), aclosing(backend.submit(spec_for(tiny, steps=500), {})) as events:
            async for event in events:
                if isinstance(event, Started):
                    await backend.cancel(event.job_id)
                last = event
        assert last is not None
        return last

    try:
        assert isinstance(asyncio.run(cancel_midway()), Cancelled)
    finally:
        backend.close()


def test_closing_the_backend_leaves_nobody_waiting(tiny: Model) -> None:
    backend = open_backend(tiny, denoiser_for=slowly)

    async def close_midway() -> list[list[Event]]:
        jobs = [asyncio.create_task(all_events(backend, spec_for(tiny, seed=seed, steps=500))) for seed in range(3)]
        await wait_in_loop_until(lambda: len(backend.engine.live) == 3)
        await asyncio.to_thread(backend.close)
        return await asyncio.gather(*jobs)

    for events in asyncio.run(close_midway()):
        assert isinstance(events[-1], Cancelled)
    assert not backend.thread.is_alive()
    backend.close()  # a second time does nothing


def test_a_closed_backend_says_so(tiny: Model) -> None:
    backend = open_backend(tiny)
    backend.close()
    with pytest.raises(SafelightError, match="closed"):
        asyncio.run(all_events(backend, spec_for(tiny)))
    assert not backend.listeners


def test_a_model_that_cannot_be_had_is_said_before_anything_is_queued(tiny: Model) -> None:
    def nothing(spec: Denoised) -> Model:
        raise UnknownModel(spec.model, ["mini"])

    backend = LocalBackend(ModelLoader(nothing), denoiser_for=eager_denoiser, budget_megapixels=lambda _model: 1.0)
    try:
        with pytest.raises(UnknownModel):
            asyncio.run(all_events(backend, spec_for(tiny)))
        assert not backend.engine.live
    finally:
        backend.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_down_leaves_nobody_waiting(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug outside of any job's work is logged, and every caller gets an error."""
    backend = open_backend(tiny, denoiser_for=slowly)

    def broken() -> bool:
        raise ZeroDivisionError("ours")

    async def break_midway() -> list[Event]:
        task = asyncio.create_task(all_events(backend, spec_for(tiny, steps=500)))
        await wait_in_loop_until(lambda: backend.engine.live)
        monkeypatch.setattr(backend.engine, "step", broken)
        return await task

    last = asyncio.run(break_midway())[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, EngineStopped)
    assert "ours" in str(last.error)
    backend.close()


def test_a_loop_that_is_gone_costs_nobody_else(tiny: Model) -> None:
    """A thread ends without closing its generator: its job is dropped, and the next one is drawn."""
    backend = open_backend(tiny, denoiser_for=slowly)
    abandoned: list[AsyncGenerator[Event, None]] = []

    def walk_away() -> None:
        loop = asyncio.new_event_loop()
        events = backend.submit(spec_for(tiny, steps=500), {})
        abandoned.append(events)
        loop.run_until_complete(anext(events))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    try:
        thread = threading.Thread(target=walk_away)
        thread.start()
        thread.join(PATIENCE_S)
        assert isinstance(asyncio.run(all_events(backend, spec_for(tiny)))[-1], Decoded)
        wait_until(lambda: not backend.engine.live)
    finally:
        backend.close()
