"""Decodes finished latents in a thread of its own, so that running jobs do not wait."""

import queue
import threading
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from safelight.engine.job import Job
from safelight.engine.scheduler import key_of
from safelight.imaging.canvas import paste_back
from safelight.models.networks.latents import decode, to_pil

Done = Callable[[Job, Image.Image | Exception], None]


class Decoder:
    """Decodes waiting latents together, if they share key and autoencoder."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.run, name="safelight-decoder", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        self.waiting.put(job)

    def close(self) -> None:
        """Finish what is waiting, then stop."""
        self.waiting.put(None)
        self.thread.join()

    def run(self) -> None:
        while True:
            jobs, closing = self.take()
            while jobs:
                together = [job for job in jobs if alike(job, jobs[0])]
                if jobs[0].strict:
                    together = together[:1]
                self.decode_together(together)
                jobs = [job for job in jobs if job not in together]
                del together  # otherwise this waiting thread would keep their model in memory
            if closing:
                return

    def take(self) -> tuple[list[Job], bool]:
        jobs: list[Job] = []
        entry = self.waiting.get()
        while entry is not None:
            jobs.append(entry)
            if self.waiting.empty():
                return jobs, False
            entry = self.waiting.get()
        return jobs, True

    def decode_together(self, jobs: Sequence[Job]) -> None:
        try:
            images = self.pictures(jobs)
        except Exception as error:  # noqa: BLE001  any error fails these jobs only and must not end the thread
            if len(jobs) == 1:
                self.done(jobs[0], error)
                return
            for job in jobs:
                self.decode_together([job])
            return
        for job, image in zip(jobs, images, strict=True):
            self.done(job, image)

    def pictures(self, jobs: Sequence[Job]) -> list[Image.Image]:
        model = jobs[0].model
        with torch.inference_mode(), model.vae_lock:
            images = to_pil(decode(model.vae, torch.stack([job.now.latents[0] for job in jobs])))
        return [finished(job, image) for job, image in zip(jobs, images, strict=True)]


def alike(job: Job, other: Job) -> bool:
    return (key_of(job), job.model.vae_digest) == (key_of(other), other.model.vae_digest)


def finished(job: Job, image: Image.Image) -> Image.Image:
    if job.overlay is None:
        return image
    return paste_back(job.overlay.original, image, job.overlay.soft_mask, job.overlay.box)
