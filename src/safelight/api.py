"""`safelight.generate`: pictures from one call, for scripts and notebooks; the command line uses `draw_all` too.

[apple] = safelight.generate("a red apple", seed=7)
apple.image.show()
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from safelight import pipeline
from safelight.assets.encode import Encoding
from safelight.errors import JobCancelled
from safelight.events import Cancelled, Event, Failed, Stored
from safelight.pipeline import PNG
from safelight.prompts.expand import Expand, expand_draft
from safelight.resolve.resolve import resolve
from safelight.spec import Denoised, Draft, parse_draft
from safelight.spec.marks import Mark, with_marked
from safelight.studio import ImageSource, Studio, open_studio

T = TypeVar("T")
OnEvent = Callable[[int, Event], None]
"""Called with the index of the picture and each of its events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A finished picture, and everything that made it."""

    image: Image.Image
    spec: Denoised
    asset_id: str
    path: Path
    """The stored file; a copy elsewhere is `image.save` or `shutil.copy`."""
    seconds: float

    @property
    def seed(self) -> int:
        return self.spec.seed

    def _repr_png_(self) -> bytes:
        """Notebooks show the picture itself, with its marks."""
        return self.path.read_bytes()


def generate(
    prompt: str,
    *,
    n: int = 1,
    init: ImageSource | None = None,
    mask: ImageSource | None = None,
    controls: Sequence[Mapping[str, Any]] = (),
    picture_prompts: Sequence[Mapping[str, Any]] = (),
    regions: Sequence[Mapping[str, Any]] = (),
    studio: Studio | None = None,
    expand: Expand | None = None,
    **fields: Any,
) -> list[Drawn]:
    """Draw `n` pictures with seeds seed, seed + 1, ...; `fields` are the other fields of `safelight.spec.Draft`.

    `controls`, `picture_prompts` and `regions` hold dicts of the fields of `ControlRequest`, `PicturePromptRequest` and
    `Region`; their pictures may be files, bytes or Pillow's: `{"image": "sketch.png", "model": "canny",
    "preprocessor": "canny", "weight": 0.8}`, `{"prompt": "a red apple", "box": (0, 0, 0.5, 1)}`.
    `expand` reads choices in the prompts: "wildcards" picks by the seed, "combinatorial" makes `n` of each.

    Raises:
        SafelightError: the request cannot be drawn; the message says why, and what can.
    """
    studio = studio or default_studio()
    lists = {"controls": controls, "picture_prompts": picture_prompts, "regions": regions}
    given = {"prompt": prompt, "init": init, "mask": mask, **lists, **fields}
    given = with_marked(given, Draft, lambda picture: stored(picture, studio), Mark.PICTURE, Mark.SOURCE)
    drafts = expand_draft(parse_draft(given), n, expand=expand, folder=studio.settings.wildcards)
    return run(draw_all(drafts, studio))


def stored(picture: ImageSource, studio: Studio) -> str:
    """The digest of the picture, which is stored if it is not named by a digest already."""
    if isinstance(picture, str) and re.fullmatch("[0-9a-f]{64}", picture):
        return picture
    return studio.keep(picture)


async def draw_all(
    drafts: Sequence[Draft], studio: Studio, *, encoding: Encoding = PNG, on_event: OnEvent = lambda _i, _event: None
) -> list[Drawn]:
    """All at once, so that the engine draws them together; the first failure cancels the rest."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(draw(draft, studio, encoding=encoding, on_event=lambda event, i=i: on_event(i, event)))
            for i, draft in enumerate(drafts)
        ]
    return [task.result() for task in tasks]


async def draw(draft: Draft, studio: Studio, *, encoding: Encoding, on_event: Callable[[Event], None]) -> Drawn:
    spec = await resolve(draft, studio)
    async with aclosing(pipeline.generate(spec, studio, encoding=encoding)) as events:
        async for event in events:
            on_event(event)
            match event:
                case Stored():
                    image = await asyncio.to_thread(studio.finished, event.asset_id)
                    path = Path(event.path)
                    return Drawn(image=image, spec=spec, asset_id=event.asset_id, path=path, seconds=event.seconds)
                case Failed():
                    raise event.error
                case Cancelled():
                    raise JobCancelled(f"cancelled after {event.step} steps")
                case _:
                    pass
    raise AssertionError("the path ends with Stored, Failed or Cancelled")


@cache
def default_studio() -> Studio:
    """One per process, so that a script's second call finds the model in memory."""
    return open_studio()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, also where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return unwrapped(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(unwrapped, work).result()


def unwrapped(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, with the first error of a task group as itself."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
