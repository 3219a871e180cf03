"""Pictures to train on, and recipes of a few steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safelight.lifecycle.training.events import TrainingEvent, TrainingFinished
from safelight.lifecycle.training.recipe import AnyRecipe, parse_recipe
from safelight.lifecycle.training.train import train
from safelight.settings import Settings

SIDE = 64
Checkpoints = Callable[[str], Path]


def write_pictures(
    folder: Path, count: int = 5, *, size: tuple[int, int] = (SIDE, SIDE), captions: bool = True
) -> Path:
    """Write coloured gradients, each different, with different captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, size).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"a photo, the red apple {'very ' * number}big")
    return folder


def picture(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    levels = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def recipe_for(base: Path, data: Path, kind: str = "lora", **wishes: Any) -> AnyRecipe:
    usual = {"kind": kind, "name": "learnt", "base": str(base), "data": str(data), "steps": 4, "batch": 2}
    return parse_recipe(usual | {"tracker": "none", "min_side": 16} | wishes)


def learn(recipe: AnyRecipe, home: Path, out: Path | None = None) -> list[TrainingEvent]:
    return list(train(recipe, Settings(home=home, device="cpu"), out))


def finished(news: list[TrainingEvent]) -> TrainingFinished:
    last = news[-1]
    assert isinstance(last, TrainingFinished), last
    return last
