"""Follow one picture event by event, with a first look at every fourth step.

python examples/watch_it_develop.py "a red apple"
"""

import asyncio
import sys

from safelight import open_studio
from safelight.events import Previewed, Started, Stepped, Stored
from safelight.pipeline import generate
from safelight.resolve.resolve import resolve
from safelight.settings import Settings
from safelight.spec import Draft


async def watch(prompt: str) -> None:
    with open_studio(Settings.from_environment(preview_every=4)) as studio:
        spec = await resolve(Draft(prompt=prompt, seed=7, steps=12), studio)
        async for event in generate(spec, studio):
            match event:
                case Started():
                    print(f"waited {event.waited_s:.2f} s for a place in the batch")
                case Stepped():
                    print(f"step {event.step} of {event.total_steps}")
                case Previewed():
                    print(f"  looks like a {event.image.width}x{event.image.height} picture already")
                case Stored():
                    print(f"in {event.seconds:.1f} s: {event.path}")
                case _:
                    pass


asyncio.run(watch(" ".join(sys.argv[1:]) or "a red apple"))
