"""Pictures of what a thing is one of, drawn by the model itself before it learns: what it must not forget.

They depend on the model, the words, the size and their number alone, and are kept for other runs.
"""

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from safelight.errors import StorageFailed
from safelight.lifecycle.training.buckets import Size, cut_for
from safelight.lifecycle.training.dataset import Ready
from safelight.lifecycle.training.drawing import draw_pictures
from safelight.lifecycle.training.events import Preparing, TrainingEvent
from safelight.lifecycle.training.sources import Example
from safelight.models.networks.load import Model
from safelight.spec import Draft

AT_ONCE = 8


def class_pictures(
    model: Model, prompt: str, *, count: int, buckets: Mapping[Size, int], kept: Path
) -> Generator[TrainingEvent, None, list[Ready]]:
    """`count` pictures, shared among the sizes that the learner's own have; at least one of each."""
    total = sum(buckets.values())
    ready: list[Ready] = []
    for size, own in sorted(buckets.items()):
        folder = kept / digest_of(model, prompt, size)
        paths = [folder / f"{seed:05}.png" for seed in range(max(1, round(count * own / total)))]
        missing = [seed for seed, path in enumerate(paths) if not path.is_file()]
        for first in range(0, len(missing), AT_ONCE):
            yield Preparing(what=f"pictures of {prompt}", done=first, total=len(missing))
            draw_some(model, prompt, size, missing[first : first + AT_ONCE], folder)
        ready += [
            Ready(
                example=Example(key=f"class:/{size[0]}x{size[1]}/{path.name}", caption=prompt, read=path.read_bytes),
                size=size,
                cut=cut_for(size, size),
            )
            for path in paths
        ]
    return ready


def draw_some(model: Model, prompt: str, size: Size, seeds: Sequence[int], folder: Path) -> None:
    drafts = [Draft(prompt=prompt, seed=seed, width=size[0], height=size[1]) for seed in seeds]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for seed, image in zip(seeds, draw_pictures(model, drafts), strict=True):
            partial = folder / f"{seed:05}.partial"
            image.save(partial, "PNG")
            partial.replace(folder / f"{seed:05}.png")
    except OSError as error:
        raise StorageFailed(f"pictures of {prompt!r} could not be kept in {folder}: {error}") from None


def digest_of(model: Model, prompt: str, size: Size) -> str:
    return hashlib.sha256(json.dumps([model.digest, prompt, *size]).encode()).hexdigest()[:32]
