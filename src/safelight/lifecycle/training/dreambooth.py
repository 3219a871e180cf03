"""The DreamBooth recipe (arXiv:2208.12242): teach a model one subject from a few pictures, under a rare word.

Read `train_dreambooth` from top to bottom. Prior preservation keeps the model's idea of the subject's class: class
pictures, drawn by the model before training, are trained on together with those of the subject.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace

from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.class_pictures import class_pictures
from safelight.lifecycle.training.dataset import TrainingPicture, assign_buckets
from safelight.lifecycle.training.drawing import draw_samples
from safelight.lifecycle.training.events import TrainingEvent
from safelight.lifecycle.training.full import unfreeze, write_model
from safelight.lifecycle.training.loop import Learner, fit, new_state
from safelight.lifecycle.training.lora_layers import add_lora, networks_of, write_diffusers, write_kohya
from safelight.lifecycle.training.recipe import DreamBoothRecipe
from safelight.lifecycle.training.results import finish, header, lineage
from safelight.lifecycle.training.run import Run, check_data, open_base, prepare, result_of
from safelight.lifecycle.training.seeds import seed_of
from safelight.models.networks.load import Model

WHOLE_RATE = 0.01
"""Learning rate of training all weights, as a factor of a LoRA's."""


def train_dreambooth(run: Run, recipe: DreamBoothRecipe) -> Iterator[TrainingEvent]:
    """Train a subject, as a LoRA or, with `whole`, as a model."""
    model = open_base(run, frozen=not recipe.whole)
    report = check_data(run, needs_captions=False)
    pictures = assign_buckets(report.good, model.description, recipe)
    pictures = [with_caption(picture, recipe.prompt) for picture in pictures]
    prior_pictures = yield from draw_class(run, recipe, model, pictures)
    data = yield from prepare(
        run,
        model,
        augment=lambda caption, rng: "" if rng.random() < recipe.caption_dropout else caption,
        pictures=pictures,
        report=report,
        prior_pictures=prior_pictures,
        prior_weight=recipe.prior_weight,
    )

    networks = networks_of(model, recipe.train)
    alpha = recipe.alpha or recipe.rank
    if recipe.whole:
        parameters = unfreeze(networks)
    else:
        parameters = add_lora(
            networks, rank=recipe.rank, alpha=alpha, layers=recipe.layers, seed=seed_of(recipe.seed, 0)
        )
    caption_encoder = CaptionEncoder(
        model,
        clip_skip=recipe.clip_skip or model.description.defaults.clip_skip,
        cache=recipe.cache_text and recipe.train == "unet",
    )
    learner = Learner(model, caption_encoder, data.levels, snr_gamma=recipe.snr_gamma)
    state = new_state(recipe, parameters, rate=recipe.rate * (WHOLE_RATE if recipe.whole else 1))
    result = yield from fit(run, learner, state, data, draw=lambda step: draw_samples(run, model, step))

    state.load_final_weights(stopped_early=result.stopped_early)
    record = lineage(run, model, report, result)
    if run.accelerator.is_main_process:
        path = result_of(run)
        if recipe.whole:
            write_model(path, model, record)
        else:
            diffusers_path = run.folder / f"{recipe.name}.diffusers.safetensors"
            write_diffusers(diffusers_path, networks, rank=recipe.rank, alpha=alpha, metadata=header(record))
            write_kohya(path, networks, alpha=alpha, metadata=header(record))
        yield finish(run, path, record, result)


def with_caption(picture: TrainingPicture, prompt: str) -> TrainingPicture:
    return replace(picture, example=replace(picture.example, caption=prompt))


def draw_class(
    run: Run, recipe: DreamBoothRecipe, model: Model, pictures: list[TrainingPicture]
) -> Generator[TrainingEvent, None, list[TrainingPicture]]:
    """Class pictures for prior preservation; none without a class prompt."""
    if recipe.class_prompt is None:
        return []
    buckets = Counter(picture.crop.bucket for picture in pictures)
    with run.accelerator.main_process_first():
        return (
            yield from class_pictures(
                model,
                recipe.class_prompt,
                count=recipe.class_pictures,
                buckets=buckets,
                cache=run.settings.cache / "class-pictures",
            )
        )
