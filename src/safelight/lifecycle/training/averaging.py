"""A running average of the weights (EMA), used for samples and for the saved model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of a network's parameters; it forgets its start quickly."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.params = list(network.parameters())
        self.shadow = [param.detach().clone() for param in self.params]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, self.params, 1 - decay)  # pyright: ignore

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the average for the duration of the block, then its own weights again."""
        own = [param.detach().clone() for param in self.params]
        copy_into(self.params, self.shadow)
        try:
            yield
        finally:
            copy_into(self.params, own)

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.updates = int(state["updates"])  # pyright: ignore[reportArgumentType]
        copy_into(self.shadow, state["shadow"])  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, in place; both have the same shape."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
