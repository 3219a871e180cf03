"""Enlarges pictures, as a backend, so that the pipeline treats an enlargement like any other picture."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from PIL import Image

from safelight.events import Decoded, Event
from safelight.imaging.image_pool import ImagePool, MemoryClaim
from safelight.models.networks.memory import Allocation, Lease
from safelight.models.vision.upscalers import Upscalers
from safelight.spec import Upscale

PIXEL_BYTES = 4
"""Bytes per pixel of a decoded picture, in RGB and RGBA."""


class UpscaleBackend:
    def __init__(
        self,
        upscalers: Upscalers,
        pool: ImagePool,
        acquire: Callable[[Sequence[Allocation]], AbstractAsyncContextManager[Lease]],
    ) -> None:
        """`acquire` waits until the upscaler's weights may be in memory."""
        self.upscalers = upscalers
        self.pool = pool
        self.acquire = acquire

    async def submit(
        self, spec: Upscale, pictures: Mapping[str, Image.Image], *, tenant: str = "", priority: int = 0
    ) -> AsyncGenerator[Event, None]:
        """Enlarge the picture; the only event is Decoded. Enlargements wait in the pool by tenant, without priority."""
        image = pictures[spec.init]
        pinned = await asyncio.to_thread(self.upscalers.require, spec.method, spec.method_digest)
        size_bytes = round(PIXEL_BYTES * image.width * image.height * spec.scale**2)
        claim = MemoryClaim(tenant=tenant, size_bytes=size_bytes, accepted=True)
        async with self.acquire(self.upscalers.allocations(pinned)) as lease:
            large = await self.pool.work(claim, lease.during(self.upscalers.enlarge), image, spec.scale, pinned)
        yield Decoded(job_id=spec.digest(), image=large, compute_s=0.0)
