"""LoRAs per row: each row of one network call has its own set, at its own weights, and the network is never changed.

    with adapters.on(rows):          rows: for each row of the call, what is applied to it
        network(...)

A layer that any LoRA has been for keeps a hook, put there once, which adds to the layer's output what the rows at hand
ask for; outside of `on` it does nothing. Rows are grouped by their set. The low-rank terms of all sets are stacked,
ranks padded to the largest, and applied by two batched products a layer, whatever the number of sets (where a
convolution's kernel is larger than 1x1, the first is one small convolution a set); a set of several LoRAs is all their
ranks side by side. Weights multiply what is between the two products, so they may change from call to call, and from
row to row, without touching the stacks. Terms of other kinds (LoKr, DoRA's gain) run one set after another.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from safelight.models.lora_names import block_names, layers_of
from safelight.models.lora_terms import Layer, LowRank, Term, run

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

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.hooked: set[str] = set()
        self.now: Arrangement | None = None
        self.last: Arrangement | None = None
        """Steps that follow each other mostly have the same rows."""
        self.stacks: OrderedDict[tuple[AdapterSet, ...], Stacks] = OrderedDict()

    @contextmanager
    def on(self, rows: Sequence[Row] | None) -> Iterator[None]:
        """Apply these to the calls of the network inside of the block; None, or nothing but empty rows, to none."""
        if rows is None or not any(rows):
            yield
            return
        self.now = self.arrange(tuple(rows))
        try:
            yield
        finally:
            self.now = None

    def arrange(self, rows: tuple[Row, ...]) -> "Arrangement":
        if self.last is None or self.last.rows != rows:
            sets = {set_of(row) for row in rows if row}
            # In an order of their own, so that who comes first in a batch does not matter.
            stacks = self.stacks_for(tuple(sorted(sets, key=lambda adapters: [id(adapter) for adapter in adapters])))
            self.last = Arrangement(rows, stacks, self.blocks, next(self.network.parameters()).device)
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
            self.layers[path].register_forward_hook(partial(self.adapt, path))
            self.hooked.add(path)

    def adapt(self, path: str, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
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


class Arrangement:
    """Which row belongs to which set, at which weights: k slots of c places, each slot for rows of one set.

    c is what a set has on average, and larger sets take several slots, so that there are never many empty places.
    """

    def __init__(
        self, rows: tuple[Row, ...], stacks: Stacks, blocks: Mapping[str, tuple[str, ...]], device: torch.device
    ) -> None:
        self.rows = rows
        self.stacks = stacks
        self.blocks = blocks if any(applied.blocks for row in rows for applied in row) else {}
        self.device = device
        self.members = [[i for i, row in enumerate(rows) if set_of(row) == adapters] for adapters in stacks.sets]
        self.places = c = -(-sum(map(len, self.members)) // len(self.members))
        slots = [(s, rows[i : i + c]) for s, rows in enumerate(self.members) for i in range(0, len(rows), c)]
        self.slots = [members for _, members in slots]
        # An empty place is filled with a row of its slot, at weight 0.
        places = [row for members in self.slots for row in members + members[:1] * (c - len(members))]
        self.index = torch.tensor(places, device=device)
        self.back = torch.argsort(self.index) if sorted(places) == list(range(len(rows))) else None
        """The place of each row, where all rows have one place each: cheaper than adding by index."""
        self.set_of_slot = torch.tensor([s for s, _ in slots], device=device) if len(slots) > len(stacks.sets) else None
        self.rows_of_set = [torch.tensor(members, device=device) for members in self.members]
        self.weights: dict[tuple[str, ...], Tensor] = {}
        self.scales: dict[str, Tensor] = {}

    def add_to(self, output: Tensor, path: str, layer: Layer, x: Tensor) -> None:
        stack = self.stacks.of(path)
        if stack is None:
            return
        assert len(x) == len(self.rows), f"{path} sees {len(x)} rows of {len(self.rows)}"
        # All are worked out before any is added: a gain is one of the layer's own output.
        others = [(s, self.other(s, position, term, path, layer, x, output)) for s, position, term in stack.others]
        if stack.down is not None:
            # Channels last, as the products leave it.
            ours = output if isinstance(layer, nn.Linear) else output.permute(0, 2, 3, 1)
            addition = self.low_rank(stack, path, layer, x).view(len(self.index), *ours.shape[1:])
            if self.back is None:
                ours.index_add_(0, self.index, addition)
            else:
                ours.add_(addition.index_select(0, self.back))
        for s, addition in others:
            output.index_add_(0, self.rows_of_set[s], addition)

    def low_rank(self, stack: Stack, path: str, layer: Layer, x: Tensor) -> Tensor:
        """up · weight · down · x for every place: (k, c n, out)."""
        assert stack.down is not None and stack.up is not None and stack.owner is not None
        down, up, owner = (self.by_slot(part) for part in (stack.down, stack.up, stack.owner))
        if path not in self.scales:
            weights = self.weights_in(self.blocks.get(path, ()))
            self.scales[path] = weights.gather(2, owner[:, None].expand(-1, self.places, -1))[:, :, None].to(up.dtype)
        between = inner(down, layer, x, self.index)
        between = between.reshape(len(down), self.places, -1, between.shape[-1]) * self.scales[path]
        return torch.bmm(between.flatten(1, 2), up.transpose(1, 2))

    def by_slot(self, of_sets: Tensor) -> Tensor:
        return of_sets if self.set_of_slot is None else of_sets.index_select(0, self.set_of_slot)

    def other(self, s: int, position: int, term: Term, path: str, layer: Layer, x: Tensor, output: Tensor) -> Tensor:
        rows, blocks = self.rows_of_set[s], self.blocks.get(path, ())
        added = term.apply(layer, x[rows], output[rows])
        weights = [self.rows[row][position].weight_in(blocks) for row in self.members[s]]
        if len(set(weights)) == 1:
            return added * weights[0]
        return added * added.new_tensor(weights).view(-1, *[1] * (added.ndim - 1))

    def weights_in(self, blocks: tuple[str, ...]) -> Tensor:
        """(k, c, longest + 1) of float32; 0 where there is nobody."""
        if blocks not in self.weights:
            weights = torch.zeros(len(self.slots), self.places, self.stacks.longest + 1)
            for k, members in enumerate(self.slots):
                for place, row in enumerate(members):
                    for position, applied in enumerate(self.rows[row]):
                        weights[k, place, position] = applied.weight_in(blocks)
            self.weights[blocks] = weights.to(self.device)
        return self.weights[blocks]


def inner(down: Tensor, layer: Layer, x: Tensor, index: Tensor) -> Tensor:
    """down · x for every place, channels last: (k, c n, r)."""
    slots = len(down)
    if isinstance(layer, nn.Linear):
        return torch.bmm(x.index_select(0, index).view(slots, -1, x.shape[-1]), down.transpose(1, 2))
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1):
        pixels = x.permute(0, 2, 3, 1).index_select(0, index).reshape(slots, -1, x.shape[1])
        return torch.bmm(pixels, down.flatten(2).transpose(1, 2))
    chosen = x.index_select(0, index).unflatten(0, (slots, -1))
    parts = [run(layer, matrix, some) for matrix, some in zip(down, chosen, strict=True)]
    return torch.stack(parts).permute(0, 1, 3, 4, 2).flatten(1, 3)
