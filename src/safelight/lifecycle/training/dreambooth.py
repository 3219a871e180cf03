"""The DreamBooth recipe (arXiv:2208.12242): one thing, from a few pictures, under a rare word.

Read `train_dreambooth` from top to bottom. What the thing is one of is kept by prior preservation: pictures of the
class, drawn by the model before it learnt anything, are shown beside those of the thing.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace

from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.class_pictures import class_pictures
from safelight.lifecycle.training.dataset import Ready, make_ready
from safelight.lifecycle.training.drawing import draw_samples
from safelight.lifecycle.training.events import TrainingEvent
from safelight.lifecycle.training.full import open_up, write_model
from safelight.lifecycle.training.loop import Learner, fit, new_state
from safelight.lifecycle.training.lora_layers import add_lora, networks_of, write_diffusers, write_kohya
from safelight.lifecycle.training.recipe import DreamBoothRecipe
from safelight.lifecycle.training.results import finish, header, lineage
from safelight.lifecycle.training.run import Run, look_over, open_base, prepare, result_of
from safelight.lifecycle.training.seeds import seed_of
from safelight.models.networks.load import Model

WHOLE_RATE = 0.01
"""All the weights together bear this much of a LoRA's learning rate."""


def train_dreambooth(run: Run, recipe: DreamBoothRecipe) -> Iterator[TrainingEvent]:
    """Learn a thing, as a LoRA or, with `whole`, as a model."""
    model = open_base(run, frozen=not recipe.whole)
    report = look_over(run, needs_captions=False)
    ready = [named(one, recipe.prompt) for one in make_ready(report.good, model.description, recipe)]
    of_class = yield from draw_class(run, recipe, model, ready)
    data = yield from prepare(
        run,
        model,
        say=lambda caption, draw: "" if draw.random() < recipe.caption_dropout else caption,
        ready=ready,
        report=report,
        of_class=of_class,
        prior_weight=recipe.prior_weight,
    )

    networks = networks_of(model, recipe.train)
    alpha = recipe.alpha or recipe.rank
    if recipe.whole:
        learnt = open_up(networks)
    else:
        learnt = add_lora(networks, rank=recipe.rank, alpha=alpha, layers=recipe.layers, seed=seed_of(recipe.seed, 0))
    reader = CaptionEncoder(
        model,
        clip_skip=recipe.clip_skip or model.description.defaults.clip_skip,
        remember=recipe.cache_text and recipe.train == "unet",
    )
    learner = Learner(model, reader, data.levels, snr_gamma=recipe.snr_gamma)
    state = new_state(recipe, learnt, rate=recipe.rate * (WHOLE_RATE if recipe.whole else 1))
    ended = yield from fit(run, learner, state, data, draw=lambda step: draw_samples(run, model, step))

    state.settle(stopped_early=ended.stopped_early)
    known = lineage(run, model, report, ended)
    if run.accelerator.is_main_process:
        path = result_of(run)
        if recipe.whole:
            write_model(path, model, known)
        else:
            beside = run.folder / f"{recipe.name}.diffusers.safetensors"
            write_diffusers(beside, networks, rank=recipe.rank, alpha=alpha, metadata=header(known))
            write_kohya(path, networks, alpha=alpha, metadata=header(known))
        yield finish(run, path, known, ended)


def named(one: Ready, prompt: str) -> Ready:
    return replace(one, example=replace(one.example, caption=prompt))


def draw_class(
    run: Run, recipe: DreamBoothRecipe, model: Model, ready: list[Ready]
) -> Generator[TrainingEvent, None, list[Ready]]:
    if recipe.class_prompt is None:
        return []
    buckets = Counter(one.cut.bucket for one in ready)
    with run.accelerator.main_process_first():
        return (
            yield from class_pictures(
                model,
                recipe.class_prompt,
                count=recipe.class_pictures,
                buckets=buckets,
                kept=run.settings.cache / "class-pictures",
            )
        )
