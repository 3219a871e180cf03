"""The LoRA recipe: from a folder of pictures to a file for `generate --lora NAME`.

Read `train_lora` from top to bottom; copy it to make another recipe.
"""

import random
from collections.abc import Iterator

from safelight.lifecycle.training.caption_augment import augment_caption
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
    """Train low-rank updates of a model's layers; the model's own weights are frozen."""
    model = open_base(run, frozen=True)

    def augment(caption: str, rng: random.Random) -> str:
        return augment_caption(
            caption, rng, dropout=recipe.caption_dropout, shuffle=recipe.shuffle_tags, keep=recipe.keep_tokens
        )

    data = yield from prepare(run, model, augment=augment)

    networks = networks_of(model, recipe.train)
    alpha = recipe.alpha or recipe.rank
    parameters = add_lora(networks, rank=recipe.rank, alpha=alpha, layers=recipe.layers, seed=seed_of(recipe.seed, 0))
    caption_encoder = CaptionEncoder(
        model,
        clip_skip=recipe.clip_skip or model.description.defaults.clip_skip,
        cache=recipe.cache_text and recipe.train == "unet" and not recipe.shuffle_tags,
    )
    learner = Learner(model, caption_encoder, data.levels, snr_gamma=recipe.snr_gamma)
    state = new_state(recipe, parameters)
    privacy = privacy_for(recipe, len(data.dataset.pictures))
    result = yield from fit(
        run, learner, state, data, draw=lambda step: draw_samples(run, model, step), privacy=privacy
    )

    state.load_final_weights(stopped_early=result.stopped_early)
    record = lineage(run, model, data.report, result, privacy)
    path = result_of(run)
    if run.accelerator.is_main_process:
        diffusers_path = run.folder / f"{recipe.name}.diffusers.safetensors"
        write_diffusers(diffusers_path, networks, rank=recipe.rank, alpha=alpha, metadata=header(record))
        write_kohya(path, networks, alpha=alpha, metadata=header(record))
        yield finish(run, path, record, result)
