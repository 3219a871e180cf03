"""A backend with one engine, which runs in a thread of its own beside asyncio."""

import asyncio
import logging
import queue
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from pathlib import Path

from PIL import Image

from safelight.engine.engine import Engine
from safelight.engine.job import Job
from safelight.engine.loader import Loader
from safelight.engine.runner import Runner
from safelight.engine.scheduler import Scheduler
from safelight.errors import EngineStopped, SafelightError
from safelight.events import Cancelled, Decoded, Event, Failed
from safelight.models.backends.denoiser import Denoiser
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Lease
from safelight.spec import Denoised

log = logging.getLogger(__name__)
Command = Callable[[], None]
Listener = Callable[[Event], None]


class LocalBackend:
    """Implements `Backend`. Commands go to the engine's thread through a queue; events go to the caller's loop."""

    def __init__(
        self,
        loader: Loader,
        *,
        denoiser_for: Callable[[Model], Denoiser],
        budget_megapixels: Callable[[Model], float],
        preview_every: int = 0,
        cache: Path | None = None,
    ) -> None:
        self.loader = loader
        self.leases: dict[str, Lease] = {}
        """Leases by job, until its last event."""
        self.preview_every = preview_every
        self.listeners: dict[str, Listener] = {}
        self.commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.engine = Engine(Scheduler(budget_megapixels), Runner(denoiser_for), emit=self.deliver, cache=cache)
        self.closed = False
        self.closing = threading.Lock()
        self.thread = threading.Thread(target=self.run, name="safelight-engine", daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        return not self.closed

    async def submit(
        self, spec: Denoised, pictures: Mapping[str, Image.Image], *, tenant: str = "", priority: int = 0
    ) -> AsyncGenerator[Event, None]:
        """As `Backend.submit`.

        Raises:
            SafelightError: the model, a LoRA or an embedding cannot be loaded, or the backend is closed.
        """
        loaded = await self.loader.load(spec, pictures)
        job_id, lease = uuid.uuid4().hex, loaded.lease
        job = Job(
            id=job_id,
            spec=spec,
            model=loaded.model,
            refiner=loaded.refiner,
            embeddings=loaded.embeddings,
            effects=loaded.effects,
            pictures=pictures,
            enlarge=self.loader.enlarge,
            tenant=tenant,
            priority=priority,
            preview_every=self.preview_every,
        )
        del loaded  # only the job refers to its model, so that the model is freed with it
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def on_event(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self.listeners[job_id] = on_event
        if lease:
            self.leases[job_id] = lease
        try:
            try:
                self.tell(partial(self.engine.add, job))
            except SafelightError:
                self.end_lease(job_id)
                raise
            del job  # otherwise its model would stay in memory while the caller handles the last event
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Decoded | Failed | Cancelled):
                    return
        finally:
            self.listeners.pop(job_id, None)
            await self.cancel(job_id)

    def end_lease(self, job_id: str) -> None:
        if lease := self.leases.pop(job_id, None):
            lease.end()

    async def cancel(self, job_id: str) -> None:
        if not self.closed:
            self.commands.put(lambda: self.engine.cancel(job_id))

    def tell(self, command: Command) -> None:
        with self.closing:
            if self.closed:
                raise EngineStopped("the engine is closed: open a new studio")
            self.commands.put(command)

    def deliver(self, event: Event) -> None:
        """Called from the engine's and the decoder's threads; events without a listener are dropped."""
        if isinstance(event, Decoded | Failed | Cancelled):
            self.end_lease(event.job_id)
        if listener := self.listeners.get(event.job_id):
            try:
                listener(event)
            except RuntimeError:  # its event loop has closed
                self.listeners.pop(event.job_id, None)
                self.commands.put(lambda: self.engine.cancel(event.job_id))

    def run(self) -> None:
        """The engine's thread; however it ends, every job gets its last event."""
        fault: EngineStopped | None = None
        try:
            self.work()
        except Exception as error:
            log.exception("the engine failed")
            fault = EngineStopped(f"the engine failed: {type(error).__name__}: {error}")
        finally:
            with self.closing:
                self.closed = True
            while not self.commands.empty():
                if command := self.commands.get():
                    command()
            self.engine.close(fault)

    def work(self) -> None:
        """Execute the queued commands, then step; block when there is nothing to do."""
        busy = False
        while True:
            while not busy or not self.commands.empty():
                command = self.commands.get()
                if command is None:
                    return
                command()
                del command  # it may hold a job, and the job its model
                busy = True
            busy = self.engine.step()

    def close(self) -> None:
        """Stop at the next step boundary and cancel running jobs."""
        self.commands.put(None)
        self.thread.join()
