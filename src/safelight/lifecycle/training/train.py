"""Train any recipe, or resume its run: the entry point for the command line, the job queue and scripts."""

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
    """Train, and yield events; closing the generator stops the run, which can be resumed.

    With several processes, only the main one yields events.

    Raises:
        SafelightError: the recipe cannot be trained, or the run failed.
    """
    run = open_run(recipe, settings, folder, version=version)
    try:
        with closing(train_recipe(run)) as events:
            for event in events:
                if run.accelerator.is_main_process:
                    yield event
    finally:
        close_run(run)


def train_recipe(run: Run) -> Generator[TrainingEvent, None, None]:
    """Train on this process, by the recipe of the run's kind."""
    match run.recipe:
        case LoraRecipe() as recipe:
            yield from train_lora(run, recipe)
        case DreamBoothRecipe() as recipe:
            yield from train_dreambooth(run, recipe)
        case EmbeddingRecipe() as recipe:
            yield from train_embedding(run, recipe)
        case FullRecipe() as recipe:
            yield from train_full(run, recipe)
