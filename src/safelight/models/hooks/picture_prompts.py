"""Pictures and faces as prompts, per row: each row of one network call looks at its own pictures, or at none.

    with pictures.on(rows):        rows: for each row of the call, what it looks at
        network(...)

Every cross-attention gets two hooks, put there once: one keeps its queries, the other adds to what it read of the words
what the same queries read of the pictures (arXiv:2308.06721). Outside of `on` they do nothing, and rows without
pictures are not touched. Keys and values of a picture are worked out once for each layer, and not in every call.
An adapter that reads faces brings a LoRA, which is added for the rows that look at one (`adapters.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from safelight.models.hooks.adapters import Adapter, Adapters, Applied
from safelight.models.hooks.adapters import Row as AdapterRow
from safelight.models.hooks.hook import NetworkInputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IpAdapter:
    """Fitted to one model; compared by identity."""

    projection: nn.Module
    reads_patches: bool
    encoder_width: int
    """Of what it reads of a picture; 0 for nothing."""
    layers: Mapping[str, tuple[Tensor, Tensor]]
    """By the path of a cross-attention, what makes keys and values of the tokens."""
    lora: Adapter | None
    """Added to all attentions of rows that look at its tokens."""
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """What an adapter makes of one picture; compared by identity."""

    adapter: IpAdapter
    tokens: Tensor
    """(t, dim)"""
    made: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor]])

    def keys_and_values(self, path: str) -> tuple[Tensor, Tensor]:
        """(t, inner) each, in one layer."""
        if path not in self.made:
            keys, values = self.adapter.layers[path]
            self.made[path] = linear(self.tokens, keys), linear(self.tokens, values)
        return self.made[path]


@dataclass(frozen=True, slots=True)
class PromptedRow:
    """A picture that a row looks at."""

    tokens: Tokens
    weight: float


Row = tuple[PromptedRow, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that look at as many tokens, each row once."""

    index: Tensor
    tokens: tuple[Tokens, ...]
    weights: Tensor
    """(b, 1, 1)"""


class PicturePrompts:
    """Those of one network. Not for several threads at once, as the network itself."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.loras = Adapters(network, before_others=False)
        self.hooked = False
        self.queries: Tensor | None = None
        self.now: tuple[Group, ...] = ()

    def __deepcopy__(self, _memo: object) -> "PicturePrompts":
        """A copied network has hooks of ours: they go on looking here, where nothing is on while the copy is called."""
        return self

    @contextmanager
    def on(self, rows: Sequence[Row | None], inputs: NetworkInputs) -> Iterator[dict[str, Any]]:
        """Look at these in the calls of the network inside of the block; None, or nothing but empty rows, at none."""
        del inputs
        self.hook()
        self.now = groups_of([row or () for row in rows], next(self.network.parameters()).device)
        try:
            with self.loras.on([loras_in(row or ()) for row in rows]):
                yield {}
        finally:
            self.now, self.queries = (), None

    def hook(self) -> None:
        if self.hooked:
            return
        for path, attention in cross_attentions(self.network).items():
            attention.to_q.register_forward_hook(self.keep)
            attention.to_out[0].register_forward_pre_hook(partial(self.add, path, attention.heads))
        self.hooked = True

    def keep(self, _layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember the queries, (b, places, inner)."""
        if self.now:
            self.queries = output

    def add(self, path: str, heads: int, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """Add what the pictures give to what the words gave, (b, places, inner), before it leaves the attention."""
        for group in self.now:
            assert self.queries is not None
            pairs = [tokens.keys_and_values(path) for tokens in group.tokens]
            keys, values = (torch.stack(parts) for parts in zip(*pairs, strict=True))
            queries = self.queries.index_select(0, group.index)
            read = scaled_dot_product_attention(by_head(queries, heads), by_head(keys, heads), by_head(values, heads))
            read = read.transpose(1, 2).flatten(2) * group.weights.to(read)
            inputs[0].index_add_(0, group.index, read)


def loras_in(row: Row) -> AdapterRow:
    """Once for each adapter, whatever the weights and the number of its pictures, as diffusers does."""
    adapters = dict.fromkeys(seen.tokens.adapter for seen in row)
    return tuple(Applied(adapter.lora, 1.0) for adapter in adapters if adapter.lora)


def by_head(states: Tensor, heads: int) -> Tensor:
    """(b, places, inner) as (b, heads, places, inner / heads)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def groups_of(rows: Sequence[Row], device: torch.device) -> tuple[Group, ...]:
    members: dict[tuple[int, int], list[tuple[int, PromptedRow]]] = {}
    for row, pictures in enumerate(rows):
        for place, seen in enumerate(pictures):
            members.setdefault((place, len(seen.tokens.tokens)), []).append((row, seen))
    return tuple(
        Group(
            index=torch.tensor([row for row, _ in some], device=device),
            tokens=tuple(seen.tokens for _, seen in some),
            weights=torch.tensor([seen.weight for _, seen in some], device=device).view(-1, 1, 1),
        )
        for some in members.values()
    )


def attentions(network: nn.Module) -> Mapping[str, Any]:
    """All of them by path, in the order in which diffusers counts them."""
    return {path: module for path, module in network.named_modules() if path.endswith((".attn1", ".attn2"))}


def cross_attentions(network: nn.Module) -> Mapping[str, Any]:
    """By path, in the same order."""
    return {path: module for path, module in attentions(network).items() if path.endswith(".attn2")}
