"""The interface of whatever denoises: this machine's engine, a remote replica, or a test double."""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from PIL import Image

from safelight.events import Event
from safelight.spec import Denoised


class Backend(Protocol):
    @property
    def alive(self) -> bool:
        """Whether it accepts jobs: not after it was closed or has failed."""
        ...

    def submit(
        self, spec: Denoised, pictures: Mapping[str, Image.Image], *, tenant: str = "", priority: int = 0
    ) -> AsyncGenerator[Event, None]:
        """Denoise and decode; events end with Decoded, Failed or Cancelled. Closing the generator cancels the job.

        `pictures` holds the start picture and the mask by the digests that the spec names.
        """
        ...

    async def cancel(self, job_id: str) -> None: ...
