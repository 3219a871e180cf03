"""Class pictures for DreamBooth's prior preservation, drawn by the model before it is trained.

They depend only on the model, the prompt, the size and the seed, and are cached for other runs.
"""

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from safelight.errors import StorageFailed
from safelight.lifecycle.training.buckets import Size, crop_for
from safelight.lifecycle.training.dataset import TrainingPicture
from safelight.lifecycle.training.drawing import draw_pictures
from safelight.lifecycle.training.events import Preparing, TrainingEvent
from safelight.lifecycle.training.sources import Example
from safelight.models.networks.load import Model
from safelight.spec import Draft

BATCH = 8


def class_pictures(
    model: Model, prompt: str, *, count: int, buckets: Mapping[Size, int], cache: Path
) -> Generator[TrainingEvent, None, list[TrainingPicture]]:
    """`count` pictures, in the sizes of the training pictures and in proportion to them; at least one of each."""
    total = sum(buckets.values())
    pictures: list[TrainingPicture] = []
    for size, num_of_size in sorted(buckets.items()):
        folder = cache / digest_of(model, prompt, size)
        paths = [folder / f"{seed:05}.png" for seed in range(max(1, round(count * num_of_size / total)))]
        missing = [seed for seed, path in enumerate(paths) if not path.is_file()]
        for first in range(0, len(missing), BATCH):
            yield Preparing(what=f"pictures of {prompt}", done=first, total=len(missing))
            draw_batch(model, prompt, size, missing[first : first + BATCH], folder)
        pictures += [
            TrainingPicture(
                example=Example(key=f"class:/{size[0]}x{size[1]}/{path.name}", caption=prompt, read=path.read_bytes),
                size=size,
                crop=crop_for(size, size),
            )
            for path in paths
        ]
    return pictures


def draw_batch(model: Model, prompt: str, size: Size, seeds: Sequence[int], folder: Path) -> None:
    drafts = [Draft(prompt=prompt, seed=seed, width=size[0], height=size[1]) for seed in seeds]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for seed, image in zip(seeds, draw_pictures(model, drafts), strict=True):
            partial = folder / f"{seed:05}.partial"
            image.save(partial, "PNG")
            partial.replace(folder / f"{seed:05}.png")
    except OSError as error:
        raise StorageFailed(f"pictures of {prompt!r} could not be saved in {folder}: {error}") from None


def digest_of(model: Model, prompt: str, size: Size) -> str:
    return hashlib.sha256(json.dumps([model.digest, prompt, *size]).encode()).hexdigest()[:32]
