"""Perturbed attention, per row: some rows of a call look at nothing but themselves (arXiv:2403.17377).

    with perturbed.on(rows):        rows: for each row of the call, whether it is perturbed
        network(...)

In the middle of the UNet, where the structure of a picture is decided, a perturbed row's self-attention gives each
place its own value back, as if every place attended to itself alone. What the network then draws lacks structure, and
guidance leads away from it (`diffusion/guidance.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safelight.errors import UnsupportedOption


class Perturbations:
    """Those of one network. Not for several threads at once, as the network itself."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.hooked = False
        self.values: Tensor | None = None
        self.now: list[int] = []

    def __deepcopy__(self, _memo: object) -> "Perturbations":
        """As in `picture_prompts.py`: the hooks of a copied network look here."""
        return self

    @contextmanager
    def on(self, rows: Sequence[bool] | None) -> Iterator[None]:
        """In the calls of the network inside of the block."""
        if rows is None or not any(rows):
            yield
            return
        self.hook()
        self.now = [place for place, wanted in enumerate(rows) if wanted]
        try:
            yield
        finally:
            self.now, self.values = [], None

    def hook(self) -> None:
        if self.hooked:
            return
        for attention in self_attentions(self.network):
            attention.to_v.register_forward_hook(self.keep)
            attention.to_out[0].register_forward_pre_hook(self.put)
        self.hooked = True

    def keep(self, _layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.now:
            self.values = output

    def put(self, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """Each place's own value, before it leaves the attention."""
        if self.now:
            assert self.values is not None
            index = torch.tensor(self.now, device=inputs[0].device)
            inputs[0].index_copy_(0, index, self.values.index_select(0, index).to(inputs[0]))


def self_attentions(network: Any) -> list[Any]:
    """Of the middle block.

    Raises:
        UnsupportedOption: there are none.
    """
    middle = getattr(network, "mid_block", None)
    found = [] if middle is None else [part for path, part in middle.named_modules() if path.endswith(".attn1")]
    if not found:
        raise UnsupportedOption("pag_scale", "this model has no self-attention in the middle of a UNet")
    return found
