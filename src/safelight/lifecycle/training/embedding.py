"""The textual inversion recipe (arXiv:2208.01618): a new word, and nothing else.

Read `train_embedding` from top to bottom. All that is learnt are a few vectors which take the place of a word's; every
network stays as it is, so the file is a few kilobytes and goes with any model of the family.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safelight.errors import InvalidRequest
from safelight.lifecycle.training.caption_augment import sentence
from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.check import DataReport
from safelight.lifecycle.training.drawing import draw_samples
from safelight.lifecycle.training.events import TrainingEvent
from safelight.lifecycle.training.loop import Learner, fit, new_state
from safelight.lifecycle.training.lora_layers import save
from safelight.lifecycle.training.privacy import privacy_for
from safelight.lifecycle.training.recipe import EmbeddingRecipe
from safelight.lifecycle.training.results import finish, header, lineage
from safelight.lifecycle.training.run import Run, look_over, open_base, prepare, result_of
from safelight.models.networks.load import Model
from safelight.models.networks.textual_inversion import Embedding, names_in


def train_embedding(run: Run, recipe: EmbeddingRecipe) -> Iterator[TrainingEvent]:
    """Learn a word of the name `recipe.name`."""
    model = open_base(run, frozen=True)
    report = look_over(run, needs_captions=recipe.use_captions)
    if recipe.use_captions:
        require_named(report, recipe.name)

    def say(caption: str, draw: random.Random) -> str:
        return caption if recipe.use_captions else sentence(recipe.name, draw, concept=recipe.concept)

    data = yield from prepare(run, model, say=say, report=report)

    vectors = [nn.Parameter(one) for one in first_vectors(model, recipe)]
    reader = CaptionEncoder(
        model,
        clip_skip=recipe.clip_skip or model.description.defaults.clip_skip,
        remember=False,
        words={recipe.name: vectors},
    )
    learner = Learner(model, reader, data.levels, snr_gamma=recipe.snr_gamma)
    learner.vectors = nn.ParameterList(vectors)
    state = new_state(recipe, {"vectors": {str(number): vector for number, vector in enumerate(vectors)}})

    def embedding() -> Embedding:
        return Embedding(recipe.name, f"step {state.step}", tuple(vector.detach() for vector in vectors))

    privacy = privacy_for(recipe, len(data.dataset.own))
    ended = yield from fit(
        run, learner, state, data, draw=lambda step: draw_samples(run, model, step, [embedding()]), privacy=privacy
    )

    state.settle(stopped_early=ended.stopped_early)
    known = lineage(run, model, report, ended, privacy)
    path = result_of(run)
    if run.accelerator.is_main_process:
        save(path, as_file([vector.detach().cpu() for vector in vectors]), header(known))
        yield finish(run, path, known, ended)


def first_vectors(model: Model, recipe: EmbeddingRecipe) -> list[Tensor]:
    """(n, width) for each text encoder: the tokens of `init`, over and over until there are enough."""
    found: list[Tensor] = []
    for encoder in model.text_encoders:
        ids = encoder.tokenizer.ids(recipe.init)
        if not ids:
            raise InvalidRequest(f"init {recipe.init!r} is no word for this model's tokenizer")
        rows = [ids[number % len(ids)] for number in range(recipe.vectors)]
        weight: Any = encoder.network.get_input_embeddings().weight
        found.append(weight[torch.tensor(rows, device=weight.device)].detach().float().clone())
    return found


def as_file(vectors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The layouts of AUTOMATIC1111, and of SDXL's trainers."""
    return {"emb_params": vectors[0]} if len(vectors) == 1 else {"clip_l": vectors[0], "clip_g": vectors[1]}


def require_named(report: DataReport, name: str) -> None:
    silent = [seen.example.key for seen in report.good if not names_in(seen.example.caption or "", [name])]
    if silent:
        raise InvalidRequest(
            f"{len(silent)} captions do not contain the word {name!r}, {silent[0]} is the first; "
            "write it where the thing is named, or leave out --use-captions"
        )
