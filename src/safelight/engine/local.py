"""One engine in one thread of this process; asyncio stays on this side of it."""

import asyncio
import contextvars
import logging
import queue
import threading
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from PIL import Image

from safelight.engine.engine import Engine
from safelight.engine.job import Enlarge, Job, by_lanczos
from safelight.engine.runner import Runner
from safelight.engine.scheduler import Scheduler
from safelight.errors import EngineStopped, SafelightError, UnsupportedOption
from safelight.events import Cancelled, Decoded, Event, Failed
from safelight.models.adapters.control_cache import ActiveControls
from safelight.models.adapters.lora_cache import ActiveLora
from safelight.models.backends.denoiser import Denoiser
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Lease
from safelight.models.networks.textual_inversion import Embedding, require_fit
from safelight.spec import Denoised
from safelight.spec.parts import PinnedEmbedding

log = logging.getLogger(__name__)
LOADERS = 32
"""Jobs that load at once, or wait for another's loading: in threads of their own, or those who ask would wait too."""
P = ParamSpec("P")
T = TypeVar("T")
Command = Callable[[], None]
Listener = Callable[[Event], None]


class LocalBackend:
    """Implements `Backend`. Commands go to the engine's thread through a queue, events come back to each job's loop."""

    def __init__(
        self,
        model_for: Callable[[Denoised], Model],
        *,
        denoiser_for: Callable[[Model], Denoiser],
        refiner_for: Callable[[Denoised], Model | None] = lambda _spec: None,
        embedding_for: Callable[[PinnedEmbedding], Embedding] | None = None,
        budget_megapixels: Callable[[Model], float],
        loras_for: Callable[[Denoised, Model], tuple[ActiveLora, ...]] | None = None,
        led_by: Callable[[Denoised, Model, Mapping[str, Image.Image]], ActiveControls] | None = None,
        acquire: Callable[[Denoised], Awaitable[Lease]] | None = None,
        enlarge: Enlarge = by_lanczos,
        preview_every: int = 0,
        cache: Path | None = None,
    ) -> None:
        """`acquire` waits until what a spec needs may be in memory, where it then stays until the lease ends."""
        self.model_for = model_for
        self.acquire = acquire
        self.enlarge = enlarge
        self.leases: dict[str, Lease] = {}
        """By job, until its last event."""
        self.refiner_for = refiner_for
        self.embedding_for = embedding_for
        self.loras_for = loras_for
        self.led_by = led_by
        self.preview_every = preview_every
        self.loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="loading")
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
            SafelightError: the model, a LoRA or an embedding cannot be had, or the backend is closed.
        """
        lease = await self.acquire(spec) if self.acquire else None
        try:
            job = await self.job_for(spec, pictures, lease, tenant=tenant, priority=priority)
        except BaseException as error:
            if lease:
                # Whoever merely went away leaves a thread that loads on, for which the lease lasts.
                lease.end(forget=isinstance(error, Exception))
            raise
        job_id = job.id
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
            del job  # or its model would stay in memory for as long as the caller looks at the last event
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Decoded | Failed | Cancelled):
                    return
        finally:
            self.listeners.pop(job_id, None)
            await self.cancel(job_id)

    async def job_for(
        self, spec: Denoised, pictures: Mapping[str, Image.Image], lease: Lease | None, *, tenant: str, priority: int
    ) -> Job:
        """With all that it needs in memory."""

        async def load(part: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
            call = partial(contextvars.copy_context().run, lease.during(part) if lease else part, *args, **named)
            return await asyncio.get_running_loop().run_in_executor(self.loaders, call)

        model = await load(self.model_for, spec)
        refiner = await load(self.refiner_for, spec)
        loras = await load(self.loras_of, spec, model) if spec.loras else ()
        embeddings = await load(self.embeddings_of, spec, model) if spec.embeddings else ()
        leads = spec.controls or spec.picture_prompts
        led = await load(self.led, spec, model, pictures) if leads else ActiveControls()
        return Job(
            id=uuid.uuid4().hex,
            spec=spec,
            model=model,
            refiner=refiner,
            pictures=pictures,
            loras=loras,
            embeddings=embeddings,
            led=led,
            enlarge=self.enlarge,
            tenant=tenant,
            priority=priority,
            preview_every=self.preview_every,
        )

    def loras_of(self, spec: Denoised, model: Model) -> tuple[ActiveLora, ...]:
        if self.loras_for is None:
            raise UnsupportedOption("loras", "this engine was opened without a folder of LoRAs")
        return self.loras_for(spec, model)

    def led(self, spec: Denoised, model: Model, pictures: Mapping[str, Image.Image]) -> ActiveControls:
        if self.led_by is None:
            raise UnsupportedOption(
                "controls", "this engine was opened without a folder of ControlNets and IP-Adapters"
            )
        return self.led_by(spec, model, pictures)

    def embeddings_of(self, spec: Denoised, model: Model) -> tuple[Embedding, ...]:
        if self.embedding_for is None:
            raise UnsupportedOption("embeddings", "this engine was opened without a folder of embeddings")
        embeddings = tuple(map(self.embedding_for, spec.embeddings))
        widths = [encoder.width for encoder in model.text_encoders]
        for embedding in embeddings:
            require_fit(embedding.name, embedding.widths, model=model.name, model_widths=widths)
        return embeddings

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
        """Called from the engine's and the decoder's threads; a listener that has gone away hears nothing."""
        if isinstance(event, Decoded | Failed | Cancelled):
            self.end_lease(event.job_id)
        if listener := self.listeners.get(event.job_id):
            try:
                listener(event)
            except RuntimeError:  # its event loop has closed
                self.listeners.pop(event.job_id, None)
                self.commands.put(lambda: self.engine.cancel(event.job_id))

    def run(self) -> None:
        """The engine's thread; whatever ends it, nobody is left waiting."""
        fault: EngineStopped | None = None
        try:
            self.work()
        except Exception as error:
            log.exception("the engine broke down")
            fault = EngineStopped(f"the engine broke down: {type(error).__name__}: {error}")
        finally:
            with self.closing:
                self.closed = True
            while not self.commands.empty():
                if command := self.commands.get():
                    command()
            self.engine.close(fault)

    def work(self) -> None:
        """Obey what has been asked, then step; sleep when there is nothing to do."""
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
        """Stop at the next step boundary; jobs under way are cancelled."""
        self.commands.put(None)
        self.thread.join()
