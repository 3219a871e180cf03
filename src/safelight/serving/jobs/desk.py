"""Where requests become accepted jobs and accepted jobs become answers: what every dialect of the server stands on."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from safelight.assets.encode import Encoding
from safelight.errors import Forbidden, InvalidField, TooManyRequests
from safelight.events import Event
from safelight.lifecycle.training.recipe import AnyRecipe
from safelight.pipeline import PNG
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.live import Live
from safelight.serving.jobs.queue import JobQueue, Order, Terms
from safelight.serving.jobs.tables import ENDED, JobRow
from safelight.serving.jobs.training import TASK
from safelight.serving.jobs.webhooks import require_webhook_url
from safelight.serving.jobs.worker import JobWorker
from safelight.spec import Denoised, Draft, HighresFix, TextToImage, Upscale
from safelight.studio import Studio

POLL_S = 1.0
"""How late a waiter may hear of a job that another process drew."""
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a request may say about its jobs, apart from the pictures."""

    encoding: Encoding = PNG
    priority: int = 0
    idempotency_key: str | None = None
    expires_in_s: float | None = None
    webhook_url: str | None = None
    said: str = ""
    """What the request said, where its drafts already hold chances such as seeds; tells a retry from another one."""
    retried: bool = False
    """The client says that it asks again, and has no idempotency key: its last equal request is the one it means."""


class Desk:
    def __init__(
        self,
        queue: JobQueue,
        studio: Studio,
        worker: JobWorker,
        live: Live,
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
        self, drafts: Sequence[Draft | Upscale], caller: Caller, wishes: Wishes | None = None
    ) -> list[JobRow]:
        """Jobs for these pictures, all or none; they survive anything from here on.

        Raises:
            SafelightError: what is asked for cannot be, or not now, or not by this caller.
        """
        wishes = wishes or Wishes()
        caller.require("draw")
        if wishes.priority > caller.priority:
            raise InvalidField("priority", f"this key may ask for at most {caller.priority}, not {wishes.priority}")
        if wishes.webhook_url is not None:
            require_webhook_url(wishes.webhook_url, private=self.private_webhooks)
        terms = Terms(
            tenant=caller.tenant,
            priority=wishes.priority,
            idempotency_key=wishes.idempotency_key,
            request_digest=digest_of(drafts, wishes),
            expires=None if wishes.expires_in_s is None else time.time() + wishes.expires_in_s,
            webhook_url=wishes.webhook_url,
        )
        if terms.idempotency_key and (known := await asyncio.to_thread(self.queue.put_before, terms)):
            return known
        if wishes.retried and (known := await asyncio.to_thread(self.queue.asked_lately, terms)):
            return known
        await self.make_room(len(drafts), caller)
        specs = [draft if isinstance(draft, Upscale) else await self.studio.complete(draft) for draft in drafts]
        for spec in specs:
            await asyncio.to_thread(self.require_size, spec)
        encoding = {
            "format": wishes.encoding.format,
            "quality": wishes.encoding.quality,
            "metadata": wishes.encoding.metadata,
        }
        orders = [Order(spec=spec.model_dump(mode="json"), encoding=encoding) for spec in specs]
        jobs = await asyncio.to_thread(self.queue.put, orders, terms)
        self.worker.wake.set()
        return jobs

    async def accept_training(self, recipe: AnyRecipe, caller: Caller, wishes: Wishes) -> JobRow:
        """A job for a training run. It reads what its recipe names, so it is for administrators, where it is allowed.

        Raises:
            Forbidden: this caller may not train, or nobody may here.
        """
        caller.require("admin")
        if not self.studio.settings.allow_training:
            raise Forbidden("this server trains nothing; SAFELIGHT_ALLOW_TRAINING=1 lets administrators start runs")
        if wishes.webhook_url is not None:
            require_webhook_url(wishes.webhook_url, private=self.private_webhooks)
        spec = {"task": TASK, "recipe": recipe.model_dump(mode="json")}
        terms = Terms(
            tenant=caller.tenant,
            priority=wishes.priority,
            idempotency_key=wishes.idempotency_key,
            request_digest=recipe.digest(),
            expires=None if wishes.expires_in_s is None else time.time() + wishes.expires_in_s,
            webhook_url=wishes.webhook_url,
        )
        [job] = await asyncio.to_thread(self.queue.put, [Order(spec=spec, encoding={})], terms)
        self.worker.wake.set()
        return job

    async def make_room(self, num_pictures: int, caller: Caller) -> None:
        """Raises TooManyRequests where the line, the caller's rate or its quota has no room for so many more."""
        counts = await asyncio.to_thread(self.queue.counts)
        if counts["queued"] + num_pictures > self.longest_line:
            wait_s = num_pictures * await asyncio.to_thread(self.queue.pace_s)
            raise TooManyRequests(
                f"{counts['queued']} jobs are in line and {self.longest_line} fit",
                retry_after_s=max(1.0, wait_s),
                code="queue_full",
            )
        now = time.time()
        if caller.per_minute is not None:
            asked, _ = await asyncio.to_thread(self.queue.used, caller.tenant, since=now - 60)
            if asked + num_pictures > caller.per_minute:
                raise TooManyRequests(
                    f"{asked} of {caller.per_minute} pictures a minute are used",
                    retry_after_s=60,
                    code="rate_limit_exceeded",
                )
        if caller.pictures_per_day is not None or caller.compute_s_per_day is not None:
            midnight = now - now % DAY_S
            asked, compute_s = await asyncio.to_thread(self.queue.used, caller.tenant, since=midnight)
            over_pictures = caller.pictures_per_day is not None and asked + num_pictures > caller.pictures_per_day
            over_compute = caller.compute_s_per_day is not None and compute_s >= caller.compute_s_per_day
            if over_pictures or over_compute:
                raise TooManyRequests(
                    f"today's quota is used: {asked} pictures, {compute_s:.0f} s of network time",
                    retry_after_s=midnight + DAY_S - now,
                    code="quota_exceeded",
                )

    def require_size(self, spec: Denoised | Upscale) -> None:
        """Raises InvalidRequest where the picture would be larger than the server draws."""
        most = self.studio.settings.max_output_pixels
        match spec:
            case Upscale():
                image = self.studio.picture(spec.init)
                pixels = image.width * image.height * spec.scale**2
                field = "scale"
            case TextToImage(highres=HighresFix(scale=scale)):
                pixels = spec.width * spec.height * scale**2
                field = "highres.scale"
            case _:
                pixels = spec.width * spec.height
                field = "width"
        if pixels > most:
            raise InvalidField(field, f"the picture would have {pixels:.0f} pixels; this server draws at most {most}")

    async def wait(self, jobs: Sequence[JobRow], *, timeout_s: float | None = None) -> list[JobRow]:
        """The jobs as they are once all have ended, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), aclosing(self.follow(jobs)) as news:
                async for _ in news:
                    pass
        return await asyncio.to_thread(self.queue.get_all, [job.id for job in jobs])

    async def follow(self, jobs: Sequence[JobRow]) -> AsyncGenerator[tuple[str, Event | JobRow], None]:
        """What happens to each job as it happens, where it is drawn in this process; at last, each as it ended."""
        open_ids = [job.id for job in jobs]
        with self.live.listening(*open_ids) as heard:
            while open_ids:
                for job in await asyncio.to_thread(self.queue.get_all, open_ids):
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
        changed = await asyncio.to_thread(self.queue.cancel, job.id)
        await self.worker.drop(job.id)
        self.live.ring(job.id)
        return await asyncio.to_thread(self.queue.get, changed.id)


def digest_of(drafts: Sequence[Draft | Upscale], wishes: Wishes) -> str:
    """What tells a retry from another request."""
    asked = wishes.said or [draft.model_dump(mode="json") for draft in drafts]
    said = asked, wishes.encoding.format, wishes.encoding.quality
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
