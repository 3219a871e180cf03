"""The path, on one screen.

    Draft -> Spec -> Job -> (denoise step)* -> latents -> image -> Asset

`resolve` makes the spec of a draft; the command line, the Python API, servers and batch runners then all call
`generate`. It yields events, of which the last is Stored, Failed or Cancelled. Closing the generator cancels the job at
its next step.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from safelight.assets.encode import Encoding
from safelight.errors import SafelightError
from safelight.events import Decoded, Event, Failed, Stored
from safelight.finish import finish
from safelight.resolve.plugins import as_installed
from safelight.spec import Spec
from safelight.studio import Studio

PNG = Encoding()


async def generate(
    spec: Spec, studio: Studio, *, encoding: Encoding = PNG, tenant: str = "", priority: int = 0, place: str = ""
) -> AsyncGenerator[Event, None]:
    """Make the picture of a spec and store it; report each stage.

    Args:
        place: the request and the picture's place in it, such as the id of its job.

    Raises:
        SafelightError: the backend does not take the spec. What fails later is reported as `Failed`.
    """
    began = time.monotonic()
    spec = as_installed(spec, studio)
    pictures = await studio.pictures(spec, tenant=tenant)
    async with aclosing(studio.submit(spec, pictures, tenant=tenant, priority=priority)) as events:
        async for event in events:
            yield event
            if isinstance(event, Decoded):
                claim = await studio.claim(event.image, tenant=tenant, accepted=True)
                work = partial(store, spec=spec, studio=studio, encoding=encoding, tenant=tenant, place=place)
                yield await studio.image_pool.work(claim, work, event, began=began)


def store(
    decoded: Decoded, *, spec: Spec, studio: Studio, encoding: Encoding, tenant: str, place: str, began: float
) -> Stored | Failed:
    """The picture's file, with its spec and marks inside, under the sha256 of its bytes."""
    try:
        finished = finish(decoded.image, spec, studio, encoding, tenant=tenant, place=place)
    except SafelightError as error:
        return Failed(job_id=decoded.job_id, error=error)
    asset, seconds = finished.asset, time.monotonic() - began
    return Stored(
        job_id=decoded.job_id,
        asset_id=asset.id,
        path=str(asset.path),
        seconds=seconds,
        pixels=finished.pixels,
        marks=finished.marks,
    )
