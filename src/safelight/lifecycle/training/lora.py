"""The LoRA recipe, from a folder of pictures to a file that `generate --lora NAME` takes.

Read `train_lora` from top to bottom; copy it to make another recipe.
"""

import random
from collections.abc import Iterator

from safelight.lifecycle.training.caption_augment import worded
from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.drawing import draw_samples
from safelight.lifecycle.training.events import TrainingEvent
from safelight.lifecycle.training.loop import Learner, fit, new_state
from safelight.lifecycle.training.lora_layers import add_lora, networks_of, write_diffusers, write_kohya
from safelight.lifecycle.training.privacy import privacy_for
from safelight.lifecycle.training.recipe import LoraRecipe
from safelight.lifecycle.training.results import finish, header, lineage
from safelight.lifecycle.training.run import Run, open_base, prepare, result_of
from safelight.lifecycle.training.seeds import seed_of


def train_lora(run: Run, recipe: LoraRecipe) -> Iterator[TrainingEvent]:
    """Learn small differences to a model's layers; the model itself stays as it is."""
    model = open_base(run, frozen=True)

    def say(caption: str, draw: random.Random) -> str:
        return worded(
            caption, draw, dropout=recipe.caption_dropout, shuffle=recipe.shuffle_tags, keep=recipe.keep_tokens
        )

    data = yield from prepare(run, model, say=say)

    networks = networks_of(model, recipe.train)
    alpha = recipe.alpha or recipe.rank
    learnt = add_lora(networks, rank=recipe.rank, alpha=alpha, layers=recipe.layers, seed=seed_of(recipe.seed, 0))
    reader = CaptionEncoder(
        model,
        clip_skip=recipe.clip_skip or model.description.defaults.clip_skip,
        remember=recipe.cache_text and recipe.train == "unet" and not recipe.shuffle_tags,
    )
    learner = Learner(model, reader, data.levels, snr_gamma=recipe.snr_gamma)
    state = new_state(recipe, learnt)
    privacy = privacy_for(recipe, len(data.dataset.own))
    ended = yield from fit(run, learner, state, data, draw=lambda step: draw_samples(run, model, step), privacy=privacy)

    state.settle(stopped_early=ended.stopped_early)
    known = lineage(run, model, data.report, ended, privacy)
    path = result_of(run)
    if run.accelerator.is_main_process:
        beside = run.folder / f"{recipe.name}.diffusers.safetensors"
        write_diffusers(beside, networks, rank=recipe.rank, alpha=alpha, metadata=header(known))
        write_kohya(path, networks, alpha=alpha, metadata=header(known))
        yield finish(run, path, known, ended)
