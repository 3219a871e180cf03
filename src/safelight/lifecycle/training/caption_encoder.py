"""Encode captions for training: like `models/networks/encode.py`, with gradients and without prompt syntax.

Brackets in a caption are text, and tokens beyond one chunk are cut off, as in every trainer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safelight.models.networks.encode import Replacement, final_norm, replaced
from safelight.models.networks.load import Model
from safelight.models.networks.tokenize import Chunk, Tokenizer, frame, split_units
from safelight.prompts.weights import Weighted

EncodedCaptions = tuple[Tensor, Tensor | None]
"""Hidden states (b, tokens, dim), and SDXL's pooled embeddings (b, dim)."""


class CaptionEncoder(nn.Module):
    """The text encoders of a model.

    Args:
        cache: encode each caption once and reuse the result; only for text encoders that are not trained.
        embeddings: by word, the vectors (n, dim) that replace it, for each text encoder.
    """

    def __init__(
        self, model: Model, *, clip_skip: int, cache: bool, embeddings: Mapping[str, Sequence[Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList([encoder.network for encoder in model.text_encoders])
        self.tokenizers = [encoder.tokenizer for encoder in model.text_encoders]
        self.penultimate = model.description.family.penultimate
        self.clip_skip = clip_skip
        self.embeddings = dict(embeddings or {})
        self.cached: dict[str, EncodedCaptions] | None = {} if cache else None

    def forward(self, captions: Sequence[str]) -> EncodedCaptions:
        if self.cached is None:
            return self.encode(captions)
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self.cached]
        if missing:
            with torch.no_grad():
                context, pooled = self.encode(missing)
            for row, caption in enumerate(missing):
                self.cached[caption] = context[row], None if pooled is None else pooled[row]
        encoded = [self.cached[caption] for caption in captions]
        pooled = [vector for _, vector in encoded if vector is not None]
        return torch.stack([context for context, _ in encoded]), torch.stack(pooled) if pooled else None

    def encode(self, captions: Sequence[str]) -> EncodedCaptions:
        """Encode with all text encoders; their states are concatenated along `dim`."""
        parts = [self.encode_with(number, captions) for number in range(len(self.networks))]
        pooled = [vectors for _, vectors in parts if vectors is not None]
        return torch.cat([context for context, _ in parts], dim=-1), pooled[0] if pooled else None

    def encode_with(self, number: int, captions: Sequence[str]) -> EncodedCaptions:
        """Encode with the text encoder of that number alone."""
        network: Any = self.networks[number]
        chunks = [first_chunk(caption, self.tokenizers[number], self.num_vectors) for caption in captions]
        ids = torch.tensor([chunk.ids for chunk in chunks], device=next(network.parameters()).device)
        replacements: list[Replacement] = [
            (row, position, self.embeddings[vector.name][number][vector.number])
            for row, chunk in enumerate(chunks)
            for position, vector in chunk.vectors
        ]
        with replaced(network, replacements):
            output = network(ids, output_hidden_states=self.penultimate or self.clip_skip > 1)
        if self.penultimate:
            states = output.hidden_states[-(self.clip_skip + 1)]
        elif self.clip_skip == 1:
            states = output.last_hidden_state
        else:
            states = final_norm(network)(output.hidden_states[-self.clip_skip])
        return states, getattr(output, "text_embeds", None)

    @property
    def num_vectors(self) -> dict[str, int]:
        """How many tokens each embedding takes, by its word."""
        return {name: len(vectors[0]) for name, vectors in self.embeddings.items()}


def first_chunk(caption: str, tokenizer: Tokenizer, num_vectors: Mapping[str, int]) -> Chunk:
    tokens = [token for unit in split_units(Weighted(caption, 1.0), tokenizer, num_vectors) for token in unit]
    return frame(tokens[: tokenizer.max_length - 2], tokenizer)
