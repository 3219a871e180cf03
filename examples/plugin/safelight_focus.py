"""Focus: how sharply a UNet's attention chooses, per row. Queries are multiplied before they meet the keys.

Above 1, each place of the picture looks at fewer words, or at fewer other places; below 1, at more. For a picture of N
places from a model that learnt pictures of T, sqrt(log N / log T) on places keeps attention as it learnt it
(arXiv:2306.08645).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from safelight.errors import UnsupportedOption
from safelight.models.adapters.effect import FilelessEffect, Moment, Network
from safelight.models.hooks.hook import NetworkInputs
from safelight.spec import Denoised

Factor = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Row = tuple[float, float] | None
"""The factors of words and of places."""


class FocusRequest(BaseModel, use_attribute_docstrings=True):
    words: Factor = 1.0
    """Focus on words: the factor of cross-attention's queries."""
    places: Factor = 1.0
    """Focus on places: the factor of self-attention's queries."""


class Focus(FilelessEffect):
    """How sharply attention chooses between words, and between places of the picture."""

    name = "focus"
    request = FocusRequest

    def require(self, spec: Denoised, networks: Sequence[Network]) -> None:
        if not all(hasattr(network.unet, "up_blocks") for network in networks):
            raise UnsupportedOption("effects.focus", "this model is no UNet")

    def row(self, moment: Moment) -> Row:
        values = FocusRequest.model_validate(moment.spec.effects[self.name])
        return values.words, values.places

    def hook(self, network: nn.Module) -> "FocusHook":
        return FocusHook(network)


class FocusHook:
    def __init__(self, network: nn.Module) -> None:
        self.now: Sequence[Row] = ()
        for path, layer in network.named_modules():
            if path.endswith(("attn2.to_q", "attn1.to_q")):
                layer.register_forward_hook(partial(self.scale, 0 if "attn2" in path else 1))

    def __deepcopy__(self, _memo: object) -> "FocusHook":
        return self

    @contextmanager
    def on(self, rows: Sequence[Row], inputs: NetworkInputs) -> Iterator[dict[str, Any]]:
        """Multiply the queries of these rows in the calls inside of the block."""
        self.now = rows
        try:
            yield {}
        finally:
            self.now = ()

    def scale(self, which: int, _layer: nn.Module, _inputs: tuple[Any, ...], queries: Tensor) -> Tensor | None:
        """Queries (b, places, dim); those of rows without focus keep their very bits."""
        factors = [1.0 if row is None else row[which] for row in self.now]
        if all(factor == 1 for factor in factors):
            return None
        return queries * torch.tensor(factors, device=queries.device, dtype=queries.dtype)[:, None, None]
