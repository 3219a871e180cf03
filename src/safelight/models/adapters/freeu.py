"""FreeU, per row: what a UNet has made so far is weighed against what its encoder hands over (arXiv:2309.11497).

In the two lowest levels on the way up, half of the backbone's channels are multiplied by b, and the low frequencies of
the skip connection by s. Both meet, side by side, at the door of each residual block, where a hook that was put there
once changes them; outside of `on` it does nothing, and rows without factors keep their very bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from safelight.errors import UnsupportedOption
from safelight.models.adapters.effect import FilelessEffect, Moment, Network
from safelight.models.hooks.hook import NetworkInputs
from safelight.spec import Denoised, Draft, FreeU

Row = FreeU | None
LEVELS = 2
"""Of the way up, the lowest first."""


class FreeUEffect(FilelessEffect):
    name = "freeu"

    def used(self, draft: Draft | Denoised) -> bool:
        return draft.freeu is not None

    def require(self, spec: Denoised, networks: Sequence[Network]) -> None:
        del spec
        for network in networks:
            levels_of(network.unet)

    def row(self, moment: Moment) -> Row:
        return moment.spec.freeu

    def hook(self, network: nn.Module) -> "FreeUHook":
        return FreeUHook(network)


class FreeUHook:
    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.hooked = False
        self.now: tuple[Row, ...] = ()

    def __deepcopy__(self, _memo: object) -> "FreeUHook":
        return self

    @contextmanager
    def on(self, rows: Sequence[Row], inputs: NetworkInputs) -> Iterator[dict[str, Any]]:
        """`rows` has the factors of each row, or None."""
        del inputs
        self.hook()
        self.now = tuple(rows)
        try:
            yield {}
        finally:
            self.now = ()

    def hook(self) -> None:
        if self.hooked:
            return
        for level, block in enumerate(list(levels_of(self.network))[:LEVELS]):
            # What comes up from below is as wide as what the block before it puts out; the rest came across.
            for resnet, width in zip(block.resnets, backbone_widths(self.network, level), strict=True):
                resnet.register_forward_pre_hook(partial(self.weigh, level, width))
        self.hooked = True

    def weigh(self, level: int, width: int, _block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        places = [place for place, row in enumerate(self.now) if row is not None]
        if not places:
            return None
        states: Tensor = inputs[0]
        chosen = states[places]
        factors = [row.level(level) for row in self.now if row is not None]
        b, s = torch.tensor(factors, device=states.device, dtype=states.dtype).T.reshape(2, -1, 1, 1, 1)
        chosen[:, : width // 2] *= b
        chosen[:, width:] = scale_low_frequencies(chosen[:, width:], s)
        states = states.clone()
        states[places] = chosen
        return (states, *inputs[1:])


def scale_low_frequencies(states: Tensor, factors: Tensor) -> Tensor:
    """The four frequencies about zero, each row's by its own factor (b, 1, 1, 1)."""
    height, width = states.shape[-2:]
    found = torch.fft.fftshift(torch.fft.fftn(states.float(), dim=(-2, -1)), dim=(-2, -1))
    middle = (..., slice(height // 2 - 1, height // 2 + 1), slice(width // 2 - 1, width // 2 + 1))
    found[middle] *= factors.float()
    return torch.fft.ifftn(torch.fft.ifftshift(found, dim=(-2, -1)), dim=(-2, -1)).real.to(states.dtype)


def levels_of(network: Any) -> Sequence[Any]:
    """
    Raises:
        UnsupportedOption: the network is no UNet.
    """
    if not hasattr(network, "up_blocks"):
        raise UnsupportedOption("freeu", "FreeU needs a UNet, and this model has none")
    return network.up_blocks


def backbone_widths(network: Any, level: int) -> list[int]:
    """Channels of what comes up from below, at the door of each residual block of a level."""
    widths = list(reversed(network.config.block_out_channels))
    count = len(network.up_blocks[level].resnets)
    return [widths[max(0, level - 1)], *[widths[level]] * (count - 1)]
