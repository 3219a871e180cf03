"""Encode prompts as `Conditioning`: the vectors that cross-attention reads, one per token.

    prompts -> chunks -> one batch through each text encoder -> layer chosen by clip_skip -> weights -> Conditioning

Layers are read as diffusers' `encode_prompt` reads them; weights are AUTOMATIC1111's: a token's state is multiplied
by its weight, then the chunk is scaled back to its old mean. There the mean runs over all prompts of a batch;
here over one chunk of one prompt, so that neighbours do not matter.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.models.hooks.adapters import Adapters, Row
from safelight.models.networks.textual_inversion import Embedding
from safelight.models.networks.tokenize import Chunk, Tokenizer, chunk

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

Replacement = tuple[int, int, Tensor]
"""Row, position, and the vector that stands there in place of the token's own."""


class Prompt(NamedTuple):
    """Everything a conditioning depends on, besides the model."""

    text: str
    clip_skip: int = 1
    """1 uses the last layer (or, for SDXL, the layer it was trained on)."""
    embeddings: tuple[Embedding, ...] = ()
    """Textual inversions named in the text."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    context: Tensor
    """(tokens, dim); tokens is a multiple of the chunk length."""
    pooled: Tensor | None
    """(dim,) The text encoders' pooled output for the first chunk; None where the network does not use it."""

    @property
    def size_bytes(self) -> int:
        return self.context.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


@dataclass(frozen=True, slots=True)
class TextEncoder:
    tokenizer: Tokenizer
    network: "CLIPTextModel | CLIPTextModelWithProjection"
    adapters: Adapters = field(init=False, repr=False, compare=False)
    """LoRAs applied to the network, per row of a batch, while it is called."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", Adapters(self.network))

    @property
    def width(self) -> int:
        """Width of a token embedding."""
        return int(self.network.config.hidden_size)


@torch.no_grad()
def encode(
    encoders: Sequence[TextEncoder],
    prompts: Sequence[Prompt],
    *,
    penultimate: bool,
    pooled: str = "text_embeds",
    adapted: Sequence[Sequence[Row]] | None = None,
) -> list[Conditioning]:
    """Encode all prompts, with all their chunks, in one call of each text encoder.

    Args:
        penultimate: SDXL's rule: count from the layer before the last, without the final norm.
        pooled: name of the encoder output that is the pooled embedding; encoders without it contribute none.
        adapted: for each prompt, the LoRAs applied to each text encoder; None where there are no LoRAs.

    Raises:
        InvalidRequest: an invalid weight, or a prompt of too many chunks.
        UnsupportedOption: `clip_skip` is deeper than the text encoder.
    """
    if not prompts:
        return []
    per_encoder = [
        encode_by(
            encoder,
            prompts,
            penultimate=penultimate,
            pooled=pooled,
            number=number,
            adapted=None if adapted is None else [rows[number] for rows in adapted],
        )
        for number, encoder in enumerate(encoders)
    ]
    return [join(parts) for parts in zip(*per_encoder, strict=True)]


def zeros_like(conditioning: Conditioning) -> Conditioning:
    """Return the unconditional input that SDXL uses without a negative prompt (`force_zeros_for_empty_prompt`)."""
    pooled = conditioning.pooled
    return Conditioning(torch.zeros_like(conditioning.context), None if pooled is None else torch.zeros_like(pooled))


def encode_by(
    encoder: TextEncoder,
    prompts: Sequence[Prompt],
    *,
    penultimate: bool,
    pooled: str = "text_embeds",
    number: int = 0,
    adapted: Sequence[Row] | None = None,
) -> list[Conditioning]:
    """Encode all prompts by one text encoder, the model's `number`th (from 0)."""
    network = encoder.network
    check_depth(prompts, num_layers=network.config.num_hidden_layers)
    chunks = [chunks_of(prompt, encoder.tokenizer) for prompt in prompts]
    rows = [row.ids for prompt_chunks in chunks for row in prompt_chunks]
    deep = penultimate or any(prompt.clip_skip > 1 for prompt in prompts)
    adapter_rows = None if adapted is None else [row for row, parts in zip(adapted, chunks, strict=True) for _ in parts]
    with encoder.adapters.on(adapter_rows), replaced(network, replacements(prompts, chunks, number=number)):
        output = network(torch.tensor(rows, device=network.device), output_hidden_states=deep)
    pooled_outputs = getattr(output, pooled, None)

    conditionings: list[Conditioning] = []
    first = 0
    for (_, clip_skip, _), prompt_chunks in zip(prompts, chunks, strict=True):
        span = slice(first, first + len(prompt_chunks))
        if penultimate:
            states = output.hidden_states[-(clip_skip + 1)][span]
        elif clip_skip == 1:
            states = output.last_hidden_state[span]
        else:
            states = final_norm(network)(output.hidden_states[-clip_skip][span])
        context = torch.cat([emphasise(*pair) for pair in zip(states, prompt_chunks, strict=True)])
        # Copy: a view in the cache would hold the whole batch in memory.
        conditionings.append(Conditioning(context, None if pooled_outputs is None else pooled_outputs[first].clone()))
        first = span.stop
    return conditionings


def chunks_of(prompt: Prompt, tokenizer: Tokenizer) -> list[Chunk]:
    return chunk(prompt.text, tokenizer, {embedding.name: embedding.num_vectors for embedding in prompt.embeddings})


def replacements(prompts: Sequence[Prompt], chunks: Sequence[list[Chunk]], *, number: int) -> list[Replacement]:
    """Return the positions at which the `number`th text encoder reads embedding vectors instead of token embeddings."""
    owners = [prompt for prompt, prompt_chunks in zip(prompts, chunks, strict=True) for _ in prompt_chunks]
    rows = [row for prompt_chunks in chunks for row in prompt_chunks]
    return [
        (place, position, embedding.vectors[number][vector.number])
        for place, (prompt, row) in enumerate(zip(owners, rows, strict=True))
        for position, vector in row.vectors
        for embedding in prompt.embeddings
        if embedding.name == vector.name
    ]


@contextmanager
def replaced(network: Any, replacements: Sequence[Replacement]) -> Iterator[None]:
    """Replace the token embeddings at some positions, within the context; the vocabulary is not changed."""
    if not replacements:
        yield
        return
    rows, positions, vectors = zip(*replacements, strict=True)

    def replace_embeddings(_layer: nn.Module, _ids: Any, embedded: Tensor) -> Tensor:
        embedded[list(rows), list(positions)] = torch.stack(vectors).to(embedded)
        return embedded

    hook = network.get_input_embeddings().register_forward_hook(replace_embeddings)
    try:
        yield
    finally:
        hook.remove()


def check_depth(prompts: Sequence[Prompt], *, num_layers: int) -> None:
    deepest = max(prompt.clip_skip for prompt in prompts)
    if deepest > num_layers:
        raise UnsupportedOption(
            "clip_skip", f"{deepest} is more than the {num_layers} layers of this model's text encoder"
        )


def final_norm(network: Any) -> nn.Module:
    """Return the final layer norm. transformers 5 removed `text_model` from CLIPTextModel, but not from the model with
    a projection."""
    return getattr(network, "text_model", network).final_layer_norm


def emphasise(states: Tensor, chunk: Chunk) -> Tensor:
    """Multiply each token's state by its weight and keep the chunk's mean; `states` is (tokens, dim)."""
    if all(weight == 1 for weight in chunk.weights):
        return states
    weights = torch.tensor(chunk.weights, device=states.device)
    before = states.float()
    after = before * weights[:, None]
    return (after / mean_ratio(before, after, weights)).to(states.dtype)


def mean_ratio(before: Tensor, after: Tensor, weights: Tensor) -> Tensor:
    """Return the ratio of the means after and before weighting, a scalar; states are (tokens, dim), weights (tokens,).

    A mean can cancel to almost zero, and dividing by it would blow the states up. Where tokens agree in sign, the
    ratio lies between the smallest and the largest weight, so it is clamped to that range. If the mean before
    weighting is only rounding error, the ratio is 1.
    """
    mean = before.mean()
    if mean.abs() < 1e-4 * before.abs().mean():
        return torch.ones_like(mean)
    return (after.mean() / mean).clamp(weights.min().clamp(min=0.1), weights.max())


def join(parts: Sequence[Conditioning]) -> Conditioning:
    """Concatenate the encoders' states, and the pooled outputs of those that have one (of SDXL's, one)."""
    if len({part.context.shape[0] for part in parts}) > 1:
        raise CorruptModel("the text encoders' vocabularies differ: they split one prompt into different chunks")
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat([part.context for part in parts], dim=-1), torch.cat(pooled) if pooled else None)


K = TypeVar("K", bound=Hashable)


class ConditioningCache(Generic[K]):
    """A least-recently-used cache of conditionings, bounded in bytes; missing prompts are encoded in one call."""

    def __init__(self, encode: Callable[[Sequence[K]], list[Conditioning]], *, limit_bytes: int) -> None:
        self._encode = encode
        self._limit_bytes = limit_bytes
        self._stored: OrderedDict[K, Conditioning] = OrderedDict()
        self.size_bytes = 0

    def encode_missing(self, prompts: Sequence[K]) -> list[Conditioning]:
        """Return conditionings in the order of the prompts; repeated prompts are encoded once."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._stored]
        fresh = dict(zip(missing, self._encode(missing), strict=True)) if missing else {}
        # Read before anything is evicted: a call may need more than the cache can hold.
        wanted = [fresh[prompt] if prompt in fresh else self._stored[prompt] for prompt in prompts]
        for prompt, conditioning in zip(prompts, wanted, strict=True):
            self._store(prompt, conditioning)
        return wanted

    def clear(self) -> None:
        self._stored.clear()
        self.size_bytes = 0

    def _store(self, prompt: K, conditioning: Conditioning) -> None:
        if prompt not in self._stored:
            self.size_bytes += conditioning.size_bytes
        self._stored[prompt] = conditioning
        self._stored.move_to_end(prompt)
        while self.size_bytes > self._limit_bytes:
            _, dropped = self._stored.popitem(last=False)
            self.size_bytes -= dropped.size_bytes
