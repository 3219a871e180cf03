"""One draft or spec, from the first event to the stored file."""

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from safelight.assets.encode import Encoding
    from safelight.spec import Draft, Spec
    from safelight.studio import Studio


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedPicture:
    image: "Image.Image"
    asset_id: str
    seconds: float
    pixels: str
    """sha256 of the pixels as they were drawn."""


async def finish(draft: "Draft | Spec", studio: "Studio", encoding: "Encoding") -> FinishedPicture:
    from safelight.events import Failed, Stored
    from safelight.pipeline import generate
    from safelight.resolve.resolve import resolve
    from safelight.spec import Draft

    spec = await resolve(draft, studio) if isinstance(draft, Draft) else draft
    async with aclosing(generate(spec, studio, encoding=encoding)) as events:
        async for event in events:
            match event:
                case Stored():
                    image = studio.finished(event.asset_id)
                    return FinishedPicture(
                        image=image, asset_id=event.asset_id, seconds=event.seconds, pixels=event.pixels
                    )
                case Failed():
                    raise event.error
                case _:
                    pass
    raise AssertionError("the path ends with Stored or Failed")
