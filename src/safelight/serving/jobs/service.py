"""Turns requests into accepted jobs, and waits for jobs: the service that every dialect of the server uses."""

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
from safelight.serving.jobs.holders import pictures_of, require_access
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
"""How late a waiter may notice the end of a job that ran in another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """The options of a request's jobs, apart from the pictures themselves."""

    encoding: Encoding = PNG
    priority: int = 0
    idempotency_key: str | None = None
    expires_in_s: float | None = None
    webhook_url: str | None = None
    original_request: str = ""
    """The request as sent, if its drafts already contain random choices such as seeds; identifies its retries."""
    uploaded: bool = False
    """The pictures that the drafts name were uploaded with the request: the client named none by its id."""
    retried: bool = False
    """The client marks the request as a retry, without an idempotency key: it repeats its last equal request."""


class JobService:
    def __init__(
        self,
        queue: JobQueue,
        studio: Studio,
        worker: JobWorker,
        live: JobListeners,
        *,
        max_queued: int,
        private_webhooks: bool = False,
    ) -> None:
        self.queue = queue
        self.studio = studio
        self.worker = worker
        self.live = live
        self.max_queued = max_queued
        self.private_webhooks = private_webhooks

    async def accept(
        self, drafts: Sequence[Draft | Upscale], caller: Caller, submit_options: SubmitOptions | None = None
    ) -> list[JobRow]:
        """Accept jobs for these pictures, all or none; once this returns, they are durable.

        Raises:
            SafelightError: the request is invalid, exceeds a limit, or is not allowed for this caller.
        """
        submit_options = submit_options or SubmitOptions()
        caller.require("draw")
        self.require_allowed(caller, submit_options)
        if not submit_options.uploaded:
            named = {asset_id for draft in drafts for asset_id in pictures_of(draft)}
            await self.queue.database.ask(require_access, named, caller.sees)
        terms = self.terms_of(caller, submit_options, digest_of(drafts, submit_options))
        if known := await self.queue.database.run(self.queue.find_previous, terms):
            return known
        await self.queue.database.run(self.queue.require_capacity, terms, len(drafts))
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
        new_jobs = [
            NewJob(spec=spec.model_dump(mode="json"), encoding=encoding, pictures=pictures_of(spec)) for spec in specs
        ]
        return await self.enqueue(new_jobs, terms)

    async def accept_training(self, recipe: AnyRecipe, caller: Caller, submit_options: SubmitOptions) -> JobRow:
        """Accept a training run. It reads any folder that its recipe names, so only administrators may start one.

        Raises:
            Forbidden: this caller may not train, or the server does not allow training.
        """
        caller.require("admin")
        if not self.studio.settings.allow_training:
            raise Forbidden(
                "training is disabled on this server; SAFELIGHT_ALLOW_TRAINING=1 lets administrators start runs"
            )
        self.require_allowed(caller, submit_options)
        spec = {"task": TRAINING, "recipe": recipe.model_dump(mode="json")}
        [job] = await self.enqueue(
            [NewJob(spec=spec, encoding={})], self.terms_of(caller, submit_options, recipe.digest())
        )
        return job

    def require_allowed(self, caller: Caller, submit_options: SubmitOptions) -> None:
        """Raise InvalidRequest if this caller may not use these options."""
        if submit_options.priority > caller.priority:
            raise InvalidField("priority", f"this key allows at most {caller.priority}, not {submit_options.priority}")
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
                in_line=self.max_queued,
                per_minute=caller.per_minute,
                pictures_per_day=caller.pictures_per_day,
                compute_s_per_day=caller.compute_s_per_day,
            ),
        )

    async def enqueue(self, new_jobs: Sequence[NewJob], terms: Terms) -> list[JobRow]:
        jobs = await self.queue.database.run(self.queue.put, new_jobs, terms)
        self.worker.wake.set()
        return jobs

    def require_size(self, spec: Denoised | Upscale) -> None:
        """Raise InvalidRequest if the picture would exceed the server's largest size, or the model's largest area."""
        limit = self.studio.settings.max_output_pixels
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
        if pixels > limit:
            raise InvalidField(field, f"the picture would have {pixels:.0f} pixels; this server draws at most {limit}")
        if not isinstance(spec, Upscale):
            description = self.studio.models.find(spec.model).description
            require_area(description, spec, max_native_areas=self.studio.settings.max_native_areas)

    async def wait(self, jobs: Sequence[JobRow], *, timeout_s: float | None = None) -> list[JobRow]:
        """Wait until all have ended, or for `timeout_s`; returns their current rows."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), aclosing(self.follow(jobs)) as events:
                async for _ in events:
                    pass
        return await self.queue.database.run(self.queue.get_all, [job.id for job in jobs])

    async def follow(self, jobs: Sequence[JobRow]) -> AsyncGenerator[tuple[str, Event | JobRow], None]:
        """Yield (job id, event) for the jobs that run in this process; for each job, at last its final row."""
        open_ids = [job.id for job in jobs]
        with self.live.subscribe(*open_ids) as live_events:
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
                            job_id, event = await live_events.get()
                    except TimeoutError:
                        break
                    if event is None:
                        changed = True
                    else:
                        yield job_id, event

    async def cancel(self, job: JobRow) -> JobRow:
        """Cancel a job, a running one at its next step; returns its row."""
        changed = await self.queue.database.run(self.queue.cancel, job.id)
        await self.worker.cancel_if_held(job.id)
        self.live.notify_changed(job.id)
        return await self.queue.database.run(self.queue.get, changed.id)


def digest_of(drafts: Sequence[Draft | Upscale], submit_options: SubmitOptions) -> str:
    """The digest that identifies retries of a request."""
    content = submit_options.original_request or [draft.model_dump(mode="json") for draft in drafts]
    original_request = content, submit_options.encoding.format, submit_options.encoding.quality
    return hashlib.sha256(json.dumps(original_request, sort_keys=True).encode()).hexdigest()
