"""Four unlike requests share one engine: other words, samplers, steps, guidance and sizes, in the same network calls.

python examples/unlike_requests.py
"""

import asyncio

from safelight import open_studio
from safelight.api import draw_all
from safelight.events import Stepped
from safelight.spec import Draft

DRAFTS = [
    Draft(prompt="a red apple", seed=1, sampler="DDIM", steps=12),
    Draft(prompt="a blue car, glossy style", seed=2, sampler="Euler a", steps=16, guidance=6),
    Draft(prompt="a (green:1.3) frog", seed=3, sampler="DPM++ 2M Karras", steps=8),
    Draft(prompt="a yellow star", seed=4, sampler="UniPC", steps=10, guidance=1),
]


def report(picture: int, event: object) -> None:
    if isinstance(event, Stepped):
        print(f"picture {picture}: step {event.step} of {event.total_steps}, {event.batch_rows} rows in the call")


with open_studio() as studio:
    for drawn in asyncio.run(draw_all(DRAFTS, studio, on_event=report)):
        print(f"{drawn.spec.prompt}: {drawn.path}")
