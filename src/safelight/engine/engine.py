"""Add, step, retire: the engine's loop.

One engine is one thread and one device. It emits events, and others listen. An error in a call fails only the job
that caused it; the other jobs continue unchanged.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from safelight.diffusion.advance import Rows
from safelight.engine.conditioning import Conditionings
from safelight.engine.decoder import Decoder
from safelight.engine.job import Job
from safelight.engine.prepare import next_trajectory, prepare, refine
from safelight.engine.runner import Runner
from safelight.engine.scheduler import Scheduler
from safelight.errors import JobFailed, OutOfMemory, SafelightError
from safelight.events import Cancelled, Decoded, Event, Failed, Previewed, Queued, Started, Stepped
from safelight.models.networks.load import Model
from safelight.models.networks.preview import Factors, factors_for, preview

log = logging.getLogger(__name__)
Emit = Callable[[Event], None]


class Engine:
    def __init__(self, scheduler: Scheduler, runner: Runner, *, emit: Emit, cache: Path | None = None) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.emit = emit
        self.cache = cache
        self.conditionings = Conditionings()
        self.preview_factors: dict[tuple[str, str], Factors] = {}
        self.live: dict[str, Job] = {}
        """Every job from `add` to its last event, also while it is being decoded."""
        self.decoder = Decoder(self.decoded)

    def add(self, job: Job) -> None:
        self.live[job.id] = job
        self.emit(Queued(job_id=job.id, position=self.scheduler.add(job)))

    def cancel(self, job_id: str) -> None:
        """Takes effect at the next step boundary; no effect on a job that has ended."""
        if job := self.live.get(job_id):
            job.cancelled = True

    def pause(self, job_id: str, *, paused: bool = True) -> None:
        """A paused job keeps its position and takes part in no call until it is resumed."""
        if job := self.live.get(job_id):
            job.paused = paused

    @torch.inference_mode()
    def step(self) -> bool:
        """Advance one batch by one network call; returns False if there was nothing to do."""
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
        """Prepare new jobs and encode their prompts in one call; returns the jobs that can take a step."""
        for job in batch:
            if job.trajectory is None:
                self.isolate([job], self.prepare)
        # After `prepare`: with prompt editing, the text of each step depends on the number of steps.
        newcomers = [job for job in batch if job.state == "waiting" and job.trajectory is not None]
        if newcomers:
            self.isolate(newcomers, self.conditionings.fill)
            for job in newcomers:
                if job.encoded is not None:
                    self.start(job)
        return [job for job in batch if job.state == "running"]

    def prepare(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            prepare(job, cache=self.cache)

    def start(self, job: Job) -> None:
        job.state = "running"
        waited_s = time.monotonic() - job.arrived
        self.emit(Started(job_id=job.id, total_steps=job.total_steps, waited_s=waited_s))

    def call(self, batch: Sequence[Job]) -> None:
        """One network call and one table update; if it fails, no job has advanced."""
        began = time.perf_counter()
        shares = [job.rows for job in batch]
        costs = [job.megapixels for job in batch]
        ending = [job for job in batch if job.now.ends_step]
        rows = Rows.gather([(job.now.schedule, job.now.row) for job in batch]).to(batch[0].model.placement.device)
        outputs = self.runner.denoise(batch, rows, budget_megapixels=self.scheduler.budget(batch[0]))
        watched = [job for job in ending if job.preview_every and (job.step + 1) % job.preview_every == 0]
        estimates = dict(zip(batch, self.runner.estimates(batch, rows, outputs), strict=True)) if watched else {}
        previews = [preview(estimates[job][None], self.factors(job.model))[0] for job in watched]
        self.runner.advance(batch, rows, outputs)

        seconds = time.perf_counter() - began
        self.scheduler.charge(batch, costs)
        for job, share in zip(batch, shares, strict=True):
            job.compute_s += seconds * share / sum(shares)
        for job in ending:
            self.emit(
                Stepped(
                    job_id=job.id,
                    step=job.step,
                    total_steps=job.total_steps,
                    batch_rows=sum(shares),
                    compute_s=job.compute_s,
                )
            )
        for job, image in zip(watched, previews, strict=True):
            self.emit(Previewed(job_id=job.id, step=job.step, image=image))

    def factors(self, model: Model) -> Factors:
        key = model.digest, model.vae_digest
        if key not in self.preview_factors:
            with model.vae_lock:
                self.preview_factors[key] = factors_for(model.vae)
        return self.preview_factors[key]

    def retire(self, batch: Sequence[Job]) -> None:
        """Hand finished latents to the decoder, or begin their next trajectory."""
        for job in batch:
            if job.state != "running" or not job.now.finished:
                continue
            if job.highres is not None and not job.enlarged:
                self.isolate([job], self.second_pass)
            elif job.refiner is not None:
                self.isolate([job], self.refine)
            else:
                self.isolate([job], self.hand_over)

    def hand_over(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if not job.now.latents[0].isfinite().all():
                raise JobFailed(
                    "the network's output has NaN or infinite values; float32, or a lower guidance scale, may help"
                )
            job.state = "decoding"
            self.scheduler.remove(job)
            if self.scheduler.jobs:
                self.decoder.submit(job)
            else:
                # No other job waits, and a second busy thread would slow this thread's kernels from then on.
                self.decoder.decode_together([job])

    def refine(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            refine(job, self.cache)
        self.conditionings.fill(jobs)

    def second_pass(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            next_trajectory(job, self.cache)

    def decoded(self, job: Job, result: Image.Image | Exception) -> None:
        """Called by the decoder's thread; the scheduler no longer has the job."""
        if isinstance(result, Exception):
            self.end(job, failure(job, result))
        elif job.cancelled:
            self.end(job, Cancelled(job_id=job.id, step=job.step))
        else:
            self.end(job, Decoded(job_id=job.id, image=result, compute_s=job.compute_s))

    def isolate(self, jobs: Sequence[Job], work: Callable[[Sequence[Job]], None]) -> None:
        """Do the work for all; if it fails, shrink the batch or find the job that fails."""
        try:
            work(jobs)
        except Exception as error:  # noqa: BLE001  no error of one job may end the engine
            if is_out_of_memory(error):
                release_memory()
                if self.scheduler.halve_budget(jobs):
                    return  # no job has advanced: the same jobs are scheduled again, in smaller batches
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
        del self.live[job.id]
        self.emit(event)

    def close(self, error: Exception | None = None) -> None:
        """Decode finished jobs, and cancel the others or fail them with `error`; every job gets its last event."""
        for job in list(self.scheduler.jobs):
            self.scheduler.remove(job)
            self.end(job, failure(job, error) if error else Cancelled(job_id=job.id, step=job.step))
        self.decoder.close()


def failure(job: Job, error: Exception) -> Failed:
    if is_out_of_memory(error):
        error = OutOfMemory("this picture does not fit in memory; try a smaller size")
    if not isinstance(error, SafelightError):
        log.error("job %s failed", job.id, exc_info=error)
        error = JobFailed(f"{type(error).__name__}: {error}")
    return Failed(job_id=job.id, error=error)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        # PyTorch's allocators for the CPU and for Metal raise a plain RuntimeError with these words.
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("allocate memory", "not enough memory", "out of memory"))
    )


def release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
