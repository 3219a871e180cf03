"""The UNet on a CPU with its weights in the layout that oneDNN's kernels read, rearranged once and not at every call.

    denoiser_for -> packed_denoiser -> the eager one, over layers that were told where their packed weights are

The numbers differ from the eager ones in their last bits (docs/decisions/0011-packed-weights.md).
"""

import platform
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from safelight.models.backends.denoiser import Denoiser
from safelight.models.backends.eager import eager_denoiser
from safelight.models.networks.load import Model
from safelight.models.networks.placement import Placement

MAX_BYTES = 512 * 2**20
"""Of a UNet that is packed by default: a packed copy takes as much again."""
SIZES_KEPT = 4
"""Picture sizes whose convolutions stay packed; which layout is best depends on the height and width."""
TYPICAL_ROWS = 8
"""The layout that is best for so many rows is good for any number."""


def denoiser_for(model: Model) -> Denoiser:
    """The fastest way to run this model here that changes nothing but last bits."""
    return packed_denoiser(model) if packs(model) else eager_denoiser(model)


def packs(model: Model) -> bool:
    size_bytes = sum(param.numel() * param.element_size() for param in model.unet.parameters())
    return packed_bytes(size_bytes, model.placement) > 0


def packed_bytes(unet_bytes: int, placement: Placement) -> int:
    """What the packed copy of a UNet of that size takes; 0 where none is made."""
    worthwhile = (
        placement.device.type == "cpu"
        and placement.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and platform.machine() in ("x86_64", "AMD64")
        and unet_bytes <= MAX_BYTES
    )
    return unet_bytes if worthwhile else 0


def packed_denoiser(model: Model) -> Denoiser:
    for layer in model.unet.modules():
        if isinstance(layer, nn.Conv2d):
            layer.forward = packed_convolution(layer)  # pyright: ignore[reportAttributeAccessIssue]
        elif type(layer) is nn.Linear:
            layer.forward = packed_linear(layer)  # pyright: ignore[reportAttributeAccessIssue]
    return eager_denoiser(model)


def packed_convolution(layer: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """A forward for (n, in, h, w), with weights in the layout of the CPU's kernels."""
    geometry: Any = (layer.padding, layer.stride, layer.dilation, layer.groups)
    # What torch's own compiler calls for the same purpose.
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # pyright: ignore
    convolve = torch.ops.mkldnn._convolution_pointwise

    @lru_cache(maxsize=SIZES_KEPT)
    def weight_for(height: int, width: int) -> Tensor:
        return reorder(layer.weight.to_mkldnn(), *geometry, [TYPICAL_ROWS, layer.in_channels, height, width])

    def forward(x: Tensor) -> Tensor:
        return convolve(x, weight_for(*x.shape[-2:]), layer.bias, *geometry, "none", [], "")

    return forward


def packed_linear(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A forward for (..., in), with weights in the layout of the CPU's kernels."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight, TYPICAL_ROWS * 64)

    def forward(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")

    return forward
