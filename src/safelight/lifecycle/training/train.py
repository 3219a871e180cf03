"""Any recipe, begun or taken up again: what the command line, the queue and scripts call."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from safelight.lifecycle.training.dreambooth import train_dreambooth
from safelight.lifecycle.training.embedding import train_embedding
from safelight.lifecycle.training.events import TrainingEvent
from safelight.lifecycle.training.full import train_full
from safelight.lifecycle.training.lora import train_lora
from safelight.lifecycle.training.recipe import AnyRecipe, DreamBoothRecipe, EmbeddingRecipe, FullRecipe, LoraRecipe
from safelight.lifecycle.training.run import Run, close_run, open_run
from safelight.settings import Settings


def train(
    recipe: AnyRecipe, settings: Settings, folder: Path | None = None, *, version: str = ""
) -> Generator[TrainingEvent, None, None]:
    """Train, and say how it goes; closing the generator stops the run, which can be taken up again.

    Of several processes, the main one speaks.

    Raises:
        SafelightError: what was asked for cannot be, or something happened; the message says what is left.
    """
    run = open_run(recipe, settings, folder, version=version)
    try:
        with closing(learn(run)) as events:
            for item in events:
                if run.accelerator.is_main_process:
                    yield item
    finally:
        close_run(run)


def learn(run: Run) -> Generator[TrainingEvent, None, None]:
    """On each of the run's processes."""
    match run.recipe:
        case LoraRecipe() as recipe:
            yield from train_lora(run, recipe)
        case DreamBoothRecipe() as recipe:
            yield from train_dreambooth(run, recipe)
        case EmbeddingRecipe() as recipe:
            yield from train_embedding(run, recipe)
        case FullRecipe() as recipe:
            yield from train_full(run, recipe)
