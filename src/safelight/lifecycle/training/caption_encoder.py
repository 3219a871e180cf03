"""Captions as the network reads them: like `models/networks/encode.py`, with gradients, without the grammar of prompts.

Brackets in a caption are text, and what does not fit into one chunk is cut off, as every trainer does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safelight.models.networks.encode import Replacement, final_norm, replaced
from safelight.models.networks.load import Model
from safelight.models.networks.tokenize import Chunk, Tokenizer, frame, split_units
from safelight.prompts.weights import Weighted

Told = tuple[Tensor, Tensor | None]
"""(b, tokens, dim) states, and SDXL's pooled ones."""


class CaptionEncoder(nn.Module):
    """The text encoders of a model; `words` are new ones, with their vectors for each encoder."""

    def __init__(
        self, model: Model, *, clip_skip: int, remember: bool, words: Mapping[str, Sequence[Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList([encoder.network for encoder in model.text_encoders])
        self.tokenizers = [encoder.tokenizer for encoder in model.text_encoders]
        self.penultimate = model.description.family.penultimate
        self.clip_skip = clip_skip
        self.words = dict(words or {})
        self.remembered: dict[str, Told] | None = {} if remember else None

    def forward(self, captions: Sequence[str]) -> Told:
        if self.remembered is None:
            return self.read(captions)
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self.remembered]
        if missing:
            with torch.no_grad():
                context, pooled = self.read(missing)
            for row, caption in enumerate(missing):
                self.remembered[caption] = context[row], None if pooled is None else pooled[row]
        told = [self.remembered[caption] for caption in captions]
        pooled = [one for _, one in told if one is not None]
        return torch.stack([context for context, _ in told]), torch.stack(pooled) if pooled else None

    def read(self, captions: Sequence[str]) -> Told:
        parts = [self.read_by(number, captions) for number in range(len(self.networks))]
        pooled = [one for _, one in parts if one is not None]
        return torch.cat([context for context, _ in parts], dim=-1), pooled[0] if pooled else None

    def read_by(self, number: int, captions: Sequence[str]) -> Told:
        network: Any = self.networks[number]
        chunks = [first_chunk(caption, self.tokenizers[number], self.sizes) for caption in captions]
        ids = torch.tensor([chunk.ids for chunk in chunks], device=next(network.parameters()).device)
        places: list[Replacement] = [
            (row, position, self.words[vector.name][number][vector.number])
            for row, chunk in enumerate(chunks)
            for position, vector in chunk.vectors
        ]
        with replaced(network, places):
            output = network(ids, output_hidden_states=self.penultimate or self.clip_skip > 1)
        if self.penultimate:
            states = output.hidden_states[-(self.clip_skip + 1)]
        elif self.clip_skip == 1:
            states = output.last_hidden_state
        else:
            states = final_norm(network)(output.hidden_states[-self.clip_skip])
        return states, getattr(output, "text_embeds", None)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(vectors[0]) for name, vectors in self.words.items()}


def first_chunk(caption: str, tokenizer: Tokenizer, words: Mapping[str, int]) -> Chunk:
    tokens = [token for unit in split_units(Weighted(caption, 1.0), tokenizer, words) for token in unit]
    return frame(tokens[: tokenizer.max_length - 2], tokenizer)
