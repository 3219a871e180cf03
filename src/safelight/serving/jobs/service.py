"""Where requests become accepted jobs and accepted jobs become answers: what every dialect of the server stands on."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from safelight.assets.encode import Encoding
from safelight.errors import Forbidden, InvalidField
from safelight.events import Event
from safelight.lifecycle.training.recipe import AnyRecipe
from safelight.models.checkpoints.sizes import require_area
from safelight.pipeline import PNG
from safelight.resolve.resolve import resolve_all
from safelight.serving.jobs.holders import pictures_of, require_sight
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.live import JobListeners
from safelight.serving.jobs.queue import JobQueue, NewJob, Terms
from safelight.serving.jobs.tables import ENDED, TRAINING, JobRow
from safelight.serving.jobs.usage import Limits
from safelight.serving.jobs.webhooks import require_webhook_url
from safelight.serving.jobs.worker import JobWorker
from safelight.spec import Denoised, Draft, HighresFix, TextToImage, Upscale
from safelight.studio import Studio

POLL_S = 1.0
"""How late a waiter may hear of a job that another process drew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """What a request may say about its jobs, apart from the pictures."""

    encoding: Encoding = PNG
    priority: int = 0
    idempotency_key: str | None = None
    expires_in_s: float | None = None
    webhook_url: str | None = None
    said: str = ""
    """What the request said, where its drafts already hold chances such as seeds; tells a retry from another one."""
    brought: bool = False
    """The pictures that the drafts name came with the request: the client named none by its id."""
    retried: bool = False
    """The client says that it asks again, and has no idempotency key: its last equal request is the one it means."""


class JobService:
    def __init__(
        self,
        queue: JobQueue,
        studio: Studio,
        worker: JobWorker,
        live: JobListeners,
        *,
        longest_line: int,
        private_webhooks: bool = False,
    ) -> None:
        self.queue = queue
        self.studio = studio
        self.worker = worker
        self.live = live
        self.longest_line = longest_line
        self.private_webhooks = private_webhooks

    async def accept(
        self, drafts: Sequence[Draft | Upscale], caller: Caller, submit_options: SubmitOptions | None = None
    ) -> list[JobRow]:
        """Jobs for these pictures, all or none; they survive anything from here on.

        Raises:
            SafelightError: what is asked for cannot be, or not now, or not by this caller.
        """
        submit_options = submit_options or SubmitOptions()
        caller.require("draw")
        self.require_terms(caller, submit_options)
        if not submit_options.brought:
            named = {asset_id for draft in drafts for asset_id in pictures_of(draft)}
            await self.queue.database.ask(require_sight, named, caller.sees)
        terms = self.terms_of(caller, submit_options, digest_of(drafts, submit_options))
        if known := await self.queue.database.run(self.queue.put_before, terms):
            return known
        await self.queue.database.run(self.queue.require_room, terms, len(drafts))
        specs: list[Denoised | Upscale] = []
        async with aclosing(resolve_all(drafts, self.studio, tenant=caller.tenant)) as resolved:
            async for spec in resolved:
                await asyncio.to_thread(self.require_size, spec)
                specs.append(spec)
        encoding = {
            "format": submit_options.encoding.format,
            "quality": submit_options.encoding.quality,
            "metadata": submit_options.encoding.metadata,
        }
        orders = [
            NewJob(spec=spec.model_dump(mode="json"), encoding=encoding, pictures=pictures_of(spec)) for spec in specs
        ]
        return await self.put(orders, terms)

    async def accept_training(self, recipe: AnyRecipe, caller: Caller, submit_options: SubmitOptions) -> JobRow:
        """A job for a training run. It reads what its recipe names, so it is for administrators, where it is allowed.

        Raises:
            Forbidden: this caller may not train, or nobody may here.
        """
        caller.require("admin")
        if not self.studio.settings.allow_training:
            raise Forbidden("this server trains nothing; SAFELIGHT_ALLOW_TRAINING=1 lets administrators start runs")
        self.require_terms(caller, submit_options)
        spec = {"task": TRAINING, "recipe": recipe.model_dump(mode="json")}
        [job] = await self.put([NewJob(spec=spec, encoding={})], self.terms_of(caller, submit_options, recipe.digest()))
        return job

    def require_terms(self, caller: Caller, submit_options: SubmitOptions) -> None:
        """Raises InvalidRequest where this caller cannot have its jobs so."""
        if submit_options.priority > caller.priority:
            raise InvalidField(
                "priority", f"this key may ask for at most {caller.priority}, not {submit_options.priority}"
            )
        if submit_options.webhook_url is not None:
            require_webhook_url(submit_options.webhook_url, private=self.private_webhooks)

    def terms_of(self, caller: Caller, submit_options: SubmitOptions, digest: str) -> Terms:
        return Terms(
            tenant=caller.tenant,
            priority=submit_options.priority,
            idempotency_key=submit_options.idempotency_key,
            request_digest=digest,
            retried=submit_options.retried,
            expires=None if submit_options.expires_in_s is None else time.time() + submit_options.expires_in_s,
            webhook_url=submit_options.webhook_url,
            limits=Limits(
                in_line=self.longest_line,
                per_minute=caller.per_minute,
                pictures_per_day=caller.pictures_per_day,
                compute_s_per_day=caller.compute_s_per_day,
            ),
        )

    async def put(self, orders: Sequence[NewJob], terms: Terms) -> list[JobRow]:
        jobs = await self.queue.database.run(self.queue.put, orders, terms)
        self.worker.wake.set()
        return jobs

    def require_size(self, spec: Denoised | Upscale) -> None:
        """Raises InvalidRequest where the picture would be larger than the server draws, or its model at once."""
        most = self.studio.settings.max_output_pixels
        match spec:
            case Upscale():
                width, height = self.studio.size_of(spec.init)
                pixels = width * height * spec.scale**2
                field = "scale"
            case TextToImage(highres=HighresFix(scale=scale)):
                pixels = spec.width * spec.height * scale**2
                field = "highres.scale"
            case _:
                pixels = spec.width * spec.height
                field = "width"
        if pixels > most:
            raise InvalidField(field, f"the picture would have {pixels:.0f} pixels; this server draws at most {most}")
        if not isinstance(spec, Upscale):
            about = self.studio.models.find(spec.model).description
            require_area(about, spec, max_native_areas=self.studio.settings.max_native_areas)

    async def wait(self, jobs: Sequence[JobRow], *, timeout_s: float | None = None) -> list[JobRow]:
        """The jobs as they are once all have ended, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), aclosing(self.follow(jobs)) as news:
                async for _ in news:
                    pass
        return await self.queue.database.run(self.queue.get_all, [job.id for job in jobs])

    async def follow(self, jobs: Sequence[JobRow]) -> AsyncGenerator[tuple[str, Event | JobRow], None]:
        """What happens to each job as it happens, where it is drawn in this process; at last, each as it ended."""
        open_ids = [job.id for job in jobs]
        with self.live.listening(*open_ids) as heard:
            while open_ids:
                for job in await self.queue.database.run(self.queue.get_all, open_ids):
                    if job.state in ENDED:
                        open_ids.remove(job.id)
                        yield job.id, job
                changed = not open_ids
                while not changed:
                    try:
                        # Not `wait_for`: before Python 3.12 it loses a cancellation that comes with an event.
                        async with asyncio.timeout(POLL_S):
                            job_id, event = await heard.get()
                    except TimeoutError:
                        break
                    if event is None:
                        changed = True
                    else:
                        yield job_id, event

    async def cancel(self, job: JobRow) -> JobRow:
        """A running job stops at its next step."""
        changed = await self.queue.database.run(self.queue.cancel, job.id)
        await self.worker.drop(job.id)
        self.live.ring(job.id)
        return await self.queue.database.run(self.queue.get, changed.id)


def digest_of(drafts: Sequence[Draft | Upscale], submit_options: SubmitOptions) -> str:
    """What tells a retry from another request."""
    asked = submit_options.said or [draft.model_dump(mode="json") for draft in drafts]
    said = asked, submit_options.encoding.format, submit_options.encoding.quality
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
