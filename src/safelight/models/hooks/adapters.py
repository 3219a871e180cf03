"""LoRAs per row: each row of one network call has its own set, at its own weights, and the network is never changed.

    with adapters.on(rows):          rows: for each row of the call, what is applied to it
        network(...)

A layer that any LoRA has been for keeps a hook, put there once, which adds to the layer's output what the rows at hand
ask for; outside of `on` it does nothing. The low-rank terms of all sets are stacked, ranks padded to the largest, and
applied by two batched products a layer, whatever the number of sets (where a convolution's kernel is larger than 1x1,
the first is one small convolution a set); a set of several LoRAs is all their ranks side by side. Weights multiply what
is between the two products, so they may change from call to call, and from row to row, without touching the stacks.
Terms of other kinds (LoKr, DoRA's gain) run one set after another.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from safelight.models.hooks.hook import NetworkInputs
from safelight.models.hooks.lora_names import block_names, layers_of
from safelight.models.hooks.lora_terms import Layer, LowRank, Term, run

KEPT_STACKS, KEPT_BYTES = 4, 2**30
"""What is kept for batches to come; the stacks in use are kept whatever their size."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a LoRA adds to one network; compared by identity."""

    terms: Mapping[str, tuple[Term, ...]]
    """By the path of the layer."""

    @cached_property
    def size_bytes(self) -> int:
        return sum(
            getattr(term, name).nbytes for terms in self.terms.values() for term in terms for name in term.__slots__
        )


@dataclass(frozen=True, slots=True)
class Applied:
    adapter: Adapter
    weight: float
    blocks: tuple[tuple[str, float], ...] = ()
    """Factors of the weight by block of the UNet: `IN04`, or `down`."""

    def weight_in(self, blocks: tuple[str, ...]) -> float:
        """In a layer that goes by these names, the finest first."""
        given = dict(self.blocks)
        return self.weight * next((given[block] for block in blocks if block in given), 1.0)


Row = tuple[Applied, ...]
"""What is applied to one row; empty for a row without LoRA."""
AdapterSet = tuple[Adapter, ...]


class Adapters:
    """Those of one network. Not for several threads at once, as the network itself."""

    def __deepcopy__(self, _memo: object) -> "Adapters":
        """A copied network has hooks of ours: they go on looking here, where nothing is on while the copy is called."""
        return self

    def __init__(self, network: nn.Module, *, before_others: bool = True) -> None:
        """`before_others`: its hooks run first whenever they were put there: a gain is one of the layer's own output,
        and the order of additions changes the last bits."""
        self.network = network
        self.before_others = before_others
        self.hooked: set[str] = set()
        self.now: RowStacks | None = None
        self.last: RowStacks | None = None
        """Steps that follow each other mostly have the same rows."""
        self.stacks: OrderedDict[tuple[AdapterSet, ...], Stacks] = OrderedDict()

    @contextmanager
    def on(self, rows: Sequence[Row | None] | None, inputs: NetworkInputs | None = None) -> Iterator[dict[str, Any]]:
        """Apply these to the calls of the network inside of the block; None, or nothing but empty rows, to none."""
        del inputs
        if rows is None or not any(rows):
            yield {}
            return
        self.now = self.arrange(tuple(row or () for row in rows))
        try:
            yield {}
        finally:
            self.now = None

    def arrange(self, rows: tuple[Row, ...]) -> "RowStacks":
        if self.last is None or self.last.rows != rows:
            sets = {set_of(row) for row in rows if row}
            # In an order of their own, so that who comes first in a batch does not matter.
            stacks = self.stacks_for(tuple(sorted(sets, key=lambda adapters: [id(adapter) for adapter in adapters])))
            self.last = RowStacks(rows, stacks, self.blocks, next(self.network.parameters()).device)
        return self.last

    def stacks_for(self, sets: tuple[AdapterSet, ...]) -> "Stacks":
        if sets not in self.stacks:
            self.hook({path for adapters in sets for adapter in adapters for path in adapter.terms})
            self.stacks[sets] = Stacks(sets, self.layers)
        self.stacks.move_to_end(sets)
        while len(self.stacks) > 1 and (len(self.stacks) > KEPT_STACKS or self.size_bytes > KEPT_BYTES):
            self.stacks.popitem(last=False)
        return self.stacks[sets]

    def hook(self, paths: set[str]) -> None:
        for path in paths - self.hooked:
            self.layers[path].register_forward_hook(partial(self.adapt, path), prepend=self.before_others)
            self.hooked.add(path)

    def adapt(self, path: str, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Add to the layer's output, (b, tokens, out) or (b, out, h, w)."""
        if self.now is not None:
            self.now.add_to(output, path, layer, inputs[0])

    @property
    def size_bytes(self) -> int:
        return sum(stacks.size_bytes for stacks in self.stacks.values())

    @cached_property
    def layers(self) -> dict[str, Layer]:
        return layers_of(self.network)

    @cached_property
    def blocks(self) -> Mapping[str, tuple[str, ...]]:
        return block_names(self.network) if hasattr(self.network, "down_blocks") else {}


def set_of(row: Row) -> AdapterSet:
    return tuple(applied.adapter for applied in row)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The terms of s sets for one layer."""

    down: Tensor | None
    """(s, r, in) or (s, r, in, kh, kw), zeros beyond a set's own rank; None where no term is of low rank."""
    up: Tensor | None
    """(s, out, r)"""
    owner: Tensor | None
    """(s, r) whose weight each rank has, as a position in its set; one past the last for padding."""
    others: tuple[tuple[int, int, Term], ...]
    """Terms of other kinds, with their set and their position in it."""


@dataclass(slots=True)
class Stacks:
    """The terms of some sets, layer by layer, stacked when they are first needed."""

    sets: tuple[AdapterSet, ...]
    layers: Mapping[str, Layer]
    made: dict[str, Stack] = field(default_factory=dict[str, Stack])
    size_bytes: int = 0

    def of(self, path: str) -> Stack | None:
        if not any(path in adapter.terms for adapters in self.sets for adapter in adapters):
            return None
        if path not in self.made:
            stack = self.made[path] = stacked(self.sets, path, self.layers[path])
            self.size_bytes += sum(part.nbytes for part in (stack.down, stack.up, stack.owner) if part is not None)
        return self.made[path]

    @property
    def longest(self) -> int:
        return max(len(adapters) for adapters in self.sets)


def stacked(sets: Sequence[AdapterSet], path: str, layer: Layer) -> Stack:
    low: list[list[tuple[int, LowRank]]] = [[] for _ in sets]
    others: list[tuple[int, int, Term]] = []
    for s, adapters in enumerate(sets):
        for position, adapter in enumerate(adapters):
            for term in adapter.terms.get(path, ()):
                if isinstance(term, LowRank):
                    low[s].append((position, term))
                else:
                    others.append((s, position, term))
    rank = max(sum(len(term.down) for _, term in terms) for terms in low)
    if rank == 0:
        return Stack(None, None, None, tuple(others))
    weight, nobody = layer.weight, max(len(adapters) for adapters in sets)
    down = weight.new_zeros(len(sets), rank, *weight.shape[1:])
    up = weight.new_zeros(len(sets), len(weight), rank)
    owner = torch.full((len(sets), rank), nobody, device=weight.device)
    for s, terms in enumerate(low):
        first = 0
        for position, term in terms:
            here = slice(first, first + len(term.down))
            down[s, here] = term.down
            up[s, :, here] = term.up
            owner[s, here] = position
            first = here.stop
    return Stack(down, up, owner, tuple(others))


class RowStacks:
    """Which row has which set, at which weights.

    A row's output is added to where it lies, and its stack is fetched for it: that is far less to move than its input
    and its output are, which have a number for every token where the stack has one for every rank.
    """

    def __init__(
        self, rows: tuple[Row, ...], stacks: Stacks, blocks: Mapping[str, tuple[str, ...]], device: torch.device
    ) -> None:
        self.rows = rows
        self.stacks = stacks
        self.blocks = blocks if any(applied.blocks for row in rows for applied in row) else {}
        self.device = device
        self.wearing = [i for i, row in enumerate(rows) if row]
        self.index = torch.tensor(self.wearing, device=device) if len(self.wearing) < len(rows) else None
        """The rows that wear something, where not all do."""
        set_of_row = [stacks.sets.index(set_of(rows[i])) for i in self.wearing]
        self.set_of_row = torch.tensor(set_of_row, device=device)
        self.members = [[i for i, row in enumerate(rows) if set_of(row) == adapters] for adapters in stacks.sets]
        self.rows_of_set = [torch.tensor(members, device=device) for members in self.members]
        self.back = torch.tensor(sorted(range(len(set_of_row)), key=set_of_row.__getitem__), device=device).argsort()
        """From the order of the sets to that of the rows."""
        self.weights: dict[tuple[str, ...], Tensor] = {}
        self.scales: dict[str, Tensor] = {}

    def add_to(self, output: Tensor, path: str, layer: Layer, x: Tensor) -> None:
        """Add each row's terms to the output in place; x (b, tokens, in) or (b, in, h, w), output likewise."""
        stack = self.stacks.of(path)
        if stack is None:
            return
        assert len(x) == len(self.rows), f"{path} sees {len(x)} rows of {len(self.rows)}"
        # All are worked out before any is added: a gain is one of the layer's own output.
        others = [(s, self.other(s, position, term, path, layer, x, output)) for s, position, term in stack.others]
        if stack.down is not None and stack.up is not None:
            between = self.inner(stack.down, layer, x) * self.scale(stack, path)
            ours, factors = tokens(output, layer), (between.transpose(1, 2), self.by_row(stack.up).transpose(1, 2))
            if self.index is None:
                ours.baddbmm_(*factors)
            else:
                ours.index_add_(0, self.index, torch.bmm(*factors))
        for s, addition in others:
            output.index_add_(0, self.rows_of_set[s], addition)

    def inner(self, down: Tensor, layer: Layer, x: Tensor) -> Tensor:
        """down · x for every row that wears something: (b, r, n)."""
        if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride) != ((1, 1), (1, 1)):
            parts = [run(layer, kernel, x[some]) for kernel, some in zip(down, self.rows_of_set, strict=True)]
            return torch.cat(parts).index_select(0, self.back).flatten(2)
        chosen = x if self.index is None else x.index_select(0, self.index)
        # In this order, because a rank of eight is too few numbers for a row of the kernels' tiles.
        return torch.bmm(self.by_row(down.flatten(2)), tokens(chosen, layer).transpose(1, 2))

    def by_row(self, of_sets: Tensor) -> Tensor:
        """(s, ...) tensors of s sets, as one for each row that has a set."""
        if len(of_sets) == 1:
            return of_sets.expand(len(self.wearing), *of_sets.shape[1:])
        return of_sets.index_select(0, self.set_of_row)

    def scale(self, stack: Stack, path: str) -> Tensor:
        """The weight of each rank: (b, r, 1)."""
        if path not in self.scales:
            assert stack.up is not None and stack.owner is not None
            weights = self.weights_in(self.blocks.get(path, ()))
            self.scales[path] = weights.gather(1, self.by_row(stack.owner))[:, :, None].to(stack.up.dtype)
        return self.scales[path]

    def other(self, s: int, position: int, term: Term, path: str, layer: Layer, x: Tensor, output: Tensor) -> Tensor:
        """What a term of another kind adds to the n rows of set s: (n, tokens, out) or (n, out, h, w)."""
        rows, blocks = self.rows_of_set[s], self.blocks.get(path, ())
        added = term.apply(layer, x[rows], output[rows])
        weights = [self.rows[row][position].weight_in(blocks) for row in self.members[s]]
        if len(set(weights)) == 1:
            return added * weights[0]
        return added * added.new_tensor(weights).view(-1, *[1] * (added.ndim - 1))

    def weights_in(self, blocks: tuple[str, ...]) -> Tensor:
        """(b, longest + 1) of float32; 0 where there is nobody."""
        if blocks not in self.weights:
            given = [[applied.weight_in(blocks) for applied in self.rows[row]] for row in self.wearing]
            padded = [row + [0.0] * (self.stacks.longest + 1 - len(row)) for row in given]
            self.weights[blocks] = torch.tensor(padded, device=self.device)
        return self.weights[blocks]


def tokens(of_rows: Tensor, layer: Layer) -> Tensor:
    """(b, n, channels) of what goes into a layer or comes out of it; a view, since what is added to a copy is lost."""
    if isinstance(layer, nn.Conv2d):
        return of_rows.view(*of_rows.shape[:2], -1).transpose(1, 2)
    return of_rows.view(len(of_rows), -1, of_rows.shape[-1])
