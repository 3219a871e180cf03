"""Add, step, retire: the loop that every picture goes through.

One engine is one thread and one device. It states facts (`emit`) and others listen. Whatever goes wrong in a call
is pinned on the job it belongs to; the others go on as if it had never been there.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from safelight.diffusion.advance import Rows
from safelight.diffusion.shapes import Latents
from safelight.engine.conditioning import Conditionings
from safelight.engine.decoder import Decoder
from safelight.engine.job import Job
from safelight.engine.prepare import next_walk, prepare
from safelight.engine.runner import Runner
from safelight.engine.scheduler import Scheduler
from safelight.errors import JobFailed, OutOfMemory, SafelightError
from safelight.events import Cancelled, Decoded, Event, Failed, Previewed, Queued, Started, Stepped
from safelight.models.preview import Factors, factors_for, preview

log = logging.getLogger(__name__)
Emit = Callable[[Event], None]


class Engine:
    def __init__(self, scheduler: Scheduler, runner: Runner, *, emit: Emit, cache: Path | None = None) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.emit = emit
        self.cache = cache
        self.conditionings = Conditionings()
        self.preview_factors: dict[str, Factors] = {}
        self.vae_lock = threading.Lock()
        self.decoder = Decoder(self.decoded, self.vae_lock)

    def add(self, job: Job) -> None:
        self.emit(Queued(job_id=job.id, position=self.scheduler.add(job)))

    def cancel(self, job_id: str) -> None:
        """Takes effect at the next step boundary; a job that has ended stays as it ended."""
        for job in self.find(job_id):
            job.cancelled = True

    def pause(self, job_id: str, *, paused: bool = True) -> None:
        for job in self.find(job_id):
            job.paused = paused

    def find(self, job_id: str) -> list[Job]:
        return [job for job in self.scheduler.jobs if job.id == job_id]

    @torch.inference_mode()
    def step(self) -> bool:
        """Advance one batch by one network call; False when there was nothing to do."""
        self.drop_cancelled()
        batch = self.scheduler.next_batch()
        if not batch:
            return False
        batch = self.begin(batch)
        if batch:
            self.isolate(batch, self.call)
            self.retire(batch)
        return True

    def begin(self, batch: Sequence[Job]) -> list[Job]:
        """Encode the prompts of newcomers in one call and prepare them; returns those that can take a step."""
        newcomers = [job for job in batch if job.state == "waiting"]
        if newcomers:
            self.isolate(newcomers, self.conditionings.fill)
            for job in newcomers:
                if job.positive is not None:
                    self.isolate([job], self.start)
        return [job for job in batch if job.state == "running"]

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            with self.vae_lock:
                prepare(job, cache=self.cache)
            job.state = "running"
            waited_s = time.monotonic() - job.arrived
            self.emit(Started(job_id=job.id, total_steps=job.total_steps, waited_s=waited_s))

    def call(self, batch: Sequence[Job]) -> None:
        """One network call and one table update; nobody has moved if it fails."""
        began = time.perf_counter()
        shares = [2 if job.guided else 1 for job in batch]
        costs = [job.megapixels for job in batch]
        steps_before = [job.step for job in batch]
        rows = Rows.gather([(job.now.schedule, job.now.row) for job in batch]).to(batch[0].model.placement.device)
        outputs = self.runner.denoise(batch, rows)
        watched = [i for i, job in enumerate(batch) if job.preview_every and (job.step + 1) % job.preview_every == 0]
        estimates = self.runner.estimates(batch, rows, outputs)[watched] if watched else None
        self.runner.advance(batch, rows, outputs)

        seconds = time.perf_counter() - began
        for job, share, cost, before in zip(batch, shares, costs, steps_before, strict=True):
            self.scheduler.charge(job, cost)
            job.compute_s += seconds * share / sum(shares)
            if job.step > before:
                self.emit(Stepped(job_id=job.id, step=job.step, total_steps=job.total_steps, batch_rows=sum(shares)))
        if estimates is not None:
            self.preview([batch[i] for i in watched], estimates)

    def preview(self, jobs: Sequence[Job], estimates: Latents) -> None:
        model = jobs[0].model
        if model.digest not in self.preview_factors:
            with self.vae_lock:
                self.preview_factors[model.digest] = factors_for(model.vae)
        for job, image in zip(jobs, preview(estimates, self.preview_factors[model.digest]), strict=True):
            self.emit(Previewed(job_id=job.id, step=job.step, image=image))

    def retire(self, batch: Sequence[Job]) -> None:
        """Hand finished latents to the decoder, or on to their second walk."""
        for job in batch:
            if job.state != "running" or not job.now.finished:
                continue
            if job.walks_left > 1:
                self.isolate([job], self.walk_again)
            else:
                job.state = "decoding"
                self.scheduler.remove(job)
                self.decoder.submit(job)

    def walk_again(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            with self.vae_lock:
                next_walk(job, self.cache)

    def decoded(self, job: Job, result: Image.Image | Exception) -> None:
        """Called by the decoder's thread; the scheduler has let go of the job already."""
        if isinstance(result, Exception):
            self.end(job, failure(job, result))
        elif job.cancelled:
            self.end(job, Cancelled(job_id=job.id, step=job.step))
        else:
            self.end(job, Decoded(job_id=job.id, image=result, compute_s=job.compute_s))

    def isolate(self, jobs: Sequence[Job], work: Callable[[Sequence[Job]], None]) -> None:
        """Do the work for all; if that fails, shrink the batch or find out whose fault it is."""
        try:
            work(jobs)
        except Exception as error:  # a neighbour's fault of any kind must not end the engine
            if is_out_of_memory(error):
                release_memory()
                if self.scheduler.halve_budget(list(jobs)):
                    return  # nobody has moved: the same jobs come again in smaller batches
                error = OutOfMemory("this picture does not fit in memory; try a smaller size")
            if len(jobs) == 1:
                self.scheduler.remove(jobs[0])
                self.end(jobs[0], failure(jobs[0], error))
                return
            for job in jobs:
                self.isolate([job], work)

    def drop_cancelled(self) -> None:
        for job in [job for job in self.scheduler.jobs if job.cancelled]:
            self.scheduler.remove(job)
            self.end(job, Cancelled(job_id=job.id, step=job.step))

    def end(self, job: Job, event: Event) -> None:
        job.state = "ended"
        self.emit(event)

    def close(self) -> None:
        self.decoder.close()


def failure(job: Job, error: Exception) -> Failed:
    if not isinstance(error, SafelightError):
        log.error("job %s failed", job.id, exc_info=error)
        error = JobFailed(f"{type(error).__name__}: {error}")
    return Failed(job_id=job.id, error=error)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
