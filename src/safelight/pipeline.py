"""The path, on one screen.

    Draft -> Spec -> Job -> (denoise step)* -> latents -> image -> Asset

The command line, the Python API, servers and batch runners all call `generate`. What comes back are events; the
last one is Stored, Failed or Cancelled. Closing the generator cancels the job at its next step.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from safelight.assets.encode import Encoding, encode
from safelight.errors import SafelightError
from safelight.events import Decoded, Event, Failed, Stored
from safelight.spec import Draft, Spec, Upscale
from safelight.studio import Studio
from safelight.version import __version__

PNG = Encoding()


async def generate(
    wish: Draft | Spec, studio: Studio, *, encoding: Encoding = PNG, tenant: str = "", priority: int = 0
) -> AsyncGenerator[Event, None]:
    """Complete the spec, make the picture, store it; report each stage.

    Raises:
        SafelightError: the wish cannot be fulfilled. What fails later, in the engine, is reported as `Failed`.
    """
    began = time.monotonic()
    spec = await studio.complete(wish, tenant=tenant) if isinstance(wish, Draft) else wish
    async with aclosing(make(spec, studio, tenant=tenant, priority=priority)) as events:
        async for event in events:
            yield event
            if isinstance(event, Decoded):
                turn, room = await studio.turn(event.image, tenant=tenant, accepted=True), studio.image_pool
                yield await room.work(turn, store, event, spec, studio, encoding=encoding, began=began)


async def make(spec: Spec, studio: Studio, *, tenant: str, priority: int) -> AsyncGenerator[Event, None]:
    pictures = await studio.pictures(spec, tenant=tenant)
    match spec:
        case Upscale():
            image = await studio.upscaled(spec, pictures[spec.init], tenant=tenant)
            yield Decoded(job_id=spec.digest(), image=image, compute_s=0.0)
        case _:
            async with aclosing(studio.backend.submit(spec, pictures, tenant=tenant, priority=priority)) as events:
                async for event in events:
                    yield event


def store(decoded: Decoded, spec: Spec, studio: Studio, *, encoding: Encoding, began: float) -> Stored | Failed:
    """The picture's file, with its spec inside, under the sha256 of its bytes."""
    try:
        hashes = {} if isinstance(spec, Upscale) else studio.loras.hashes(spec.loras)
        file = encode(decoded.image, spec, encoding, version=__version__, lora_hashes=hashes)
        asset = studio.assets.put(file, encoding.suffix)
    except SafelightError as error:
        return Failed(job_id=decoded.job_id, error=error)
    seconds = time.monotonic() - began
    return Stored(job_id=decoded.job_id, asset_id=asset.id, path=str(asset.path), seconds=seconds)
