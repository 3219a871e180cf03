"""The textual inversion recipe (arXiv:2208.01618): train the embedding of a new word, and no network.

Read `train_embedding` from top to bottom. The only parameters are a few vectors that replace a word's token embeddings,
so the file has a few kilobytes and works with any model of the family.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safelight.errors import InvalidRequest
from safelight.lifecycle.training.caption_augment import template_caption
from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.check import DataReport
from safelight.lifecycle.training.drawing import draw_samples
from safelight.lifecycle.training.events import TrainingEvent
from safelight.lifecycle.training.loop import Learner, fit, new_state
from safelight.lifecycle.training.lora_layers import save
from safelight.lifecycle.training.privacy import privacy_for
from safelight.lifecycle.training.recipe import EmbeddingRecipe
from safelight.lifecycle.training.results import finish, header, lineage
from safelight.lifecycle.training.run import Run, check_data, open_base, prepare, result_of
from safelight.models.networks.load import Model
from safelight.models.networks.textual_inversion import Embedding, names_in


def train_embedding(run: Run, recipe: EmbeddingRecipe) -> Iterator[TrainingEvent]:
    """Train an embedding for the word `recipe.name`."""
    model = open_base(run, frozen=True)
    report = check_data(run, needs_captions=recipe.use_captions)
    if recipe.use_captions:
        require_name_in_captions(report, recipe.name)

    def augment(caption: str, rng: random.Random) -> str:
        return caption if recipe.use_captions else template_caption(recipe.name, rng, concept=recipe.concept)

    data = yield from prepare(run, model, augment=augment, report=report)

    vectors = [nn.Parameter(vector) for vector in initial_vectors(model, recipe)]
    caption_encoder = CaptionEncoder(
        model,
        clip_skip=recipe.clip_skip or model.description.defaults.clip_skip,
        cache=False,
        embeddings={recipe.name: vectors},
    )
    learner = Learner(model, caption_encoder, data.levels, snr_gamma=recipe.snr_gamma)
    learner.vectors = nn.ParameterList(vectors)
    state = new_state(recipe, {"vectors": {str(number): vector for number, vector in enumerate(vectors)}})

    def embedding() -> Embedding:
        return Embedding(recipe.name, f"step {state.step}", tuple(vector.detach() for vector in vectors))

    privacy = privacy_for(recipe, len(data.dataset.pictures))
    result = yield from fit(
        run, learner, state, data, draw=lambda step: draw_samples(run, model, step, [embedding()]), privacy=privacy
    )

    state.load_final_weights(stopped_early=result.stopped_early)
    record = lineage(run, model, report, result, privacy)
    path = result_of(run)
    if run.accelerator.is_main_process:
        save(path, as_file([vector.detach().cpu() for vector in vectors]), header(record))
        yield finish(run, path, record, result)


def initial_vectors(model: Model, recipe: EmbeddingRecipe) -> list[Tensor]:
    """(n, dim) for each text encoder: the token embeddings of `init`, repeated to n."""
    vectors: list[Tensor] = []
    for encoder in model.text_encoders:
        ids = encoder.tokenizer.ids(recipe.init)
        if not ids:
            raise InvalidRequest(f"init {recipe.init!r} has no tokens in this model's tokenizer")
        rows = [ids[number % len(ids)] for number in range(recipe.vectors)]
        weight: Any = encoder.network.get_input_embeddings().weight
        vectors.append(weight[torch.tensor(rows, device=weight.device)].detach().float().clone())
    return vectors


def as_file(vectors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name the vectors (n, dim) of each text encoder as AUTOMATIC1111 does, or as SDXL's trainers do."""
    return {"emb_params": vectors[0]} if len(vectors) == 1 else {"clip_l": vectors[0], "clip_g": vectors[1]}


def require_name_in_captions(report: DataReport, name: str) -> None:
    """Raises InvalidRequest if captions lack the word."""
    without = [checked.example.key for checked in report.good if not names_in(checked.example.caption or "", [name])]
    if without:
        raise InvalidRequest(
            f"{len(without)} captions do not contain the word {name!r}, {without[0]} is the first; "
            "add it to the captions, or omit --use-captions"
        )
