"""What a LoRA adds to a layer's output: a sum of terms, each of a few kinds.

| kind | adds to W | from |
|---|---|---|
| `LowRank` | up · down | LoRA, LoCon; LoHa of small rank; DoRA's update, with its gain in `up` |
| `Kronecker` | left ⊗ right | LoKr |
| `Gain` | diag(gain) · W | what DoRA does to the layer's own weights |
| `Dense` | the difference itself | all else |

Every kind can be added to the weights (`delta`), which is what merging does, or to an output (`apply`); low-rank terms
of a whole batch are, instead, applied together (`adapters.py`). Scales are in the tensors: alpha / r and the like.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A product of two thin matrices.

    `delta` takes and returns weights (out, in, ...); `apply` takes x (n, ..., in) or (n, in, h, w).
    """

    down: Tensor
    """(r, in) or (r, in, kh, kw)"""
    up: Tensor
    """(out, r)"""

    def delta(self, weight: Tensor) -> Tensor:
        return (self.up @ self.down.flatten(1)).reshape(weight.shape)

    def apply(self, layer: Layer, x: Tensor, output: Tensor) -> Tensor:
        return across(layer, run(layer, self.down, x), self.up)


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """A Kronecker product.

    `delta` takes and returns weights (out, in, ...); `apply` takes x (n, ..., in) or (n, in, h, w).
    """

    left: Tensor
    """(a, b)"""
    right: Tensor
    """(c, d) or (c, d, kh, kw), where a c = out and b d = in"""

    def delta(self, weight: Tensor) -> Tensor:
        left = self.left.view(*self.left.shape, *[1] * (self.right.ndim - 2))
        return torch.kron(left, self.right).reshape(weight.shape)

    def apply(self, layer: Layer, x: Tensor, output: Tensor) -> Tensor:
        """(left ⊗ right) x, by parts: each of the b stretches of x through right, then mixed by left."""
        (_, b), (c, d) = self.left.shape, self.right.shape[:2]
        if isinstance(layer, nn.Linear):
            stretches = x.unflatten(-1, (b, d)) @ self.right.flatten(1).T
            return torch.einsum("ab, ...bc -> ...ac", self.left, stretches).flatten(-2)
        stretches = run(layer, self.right, x.unflatten(1, (b, d)).flatten(0, 1))
        stretches = stretches.view(len(x), b, c, *stretches.shape[2:])
        return torch.einsum("ab, nbchw -> nachw", self.left, stretches).flatten(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """A factor for each output channel.

    `delta` takes and returns weights (out, in, ...); `apply` takes x (n, ..., in) or (n, in, h, w).
    """

    gain: Tensor
    """(out,) what is added for each unit of the layer's own output, its bias left out"""

    def delta(self, weight: Tensor) -> Tensor:
        return weight * self.gain.view(-1, *[1] * (weight.ndim - 1))

    def apply(self, layer: Layer, x: Tensor, output: Tensor) -> Tensor:
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        own = output if layer.bias is None else output - layer.bias.view(shape)
        return own * self.gain.view(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A difference of whole weights.

    `delta` takes and returns weights (out, in, ...); `apply` takes x (n, ..., in) or (n, in, h, w).
    """

    weight: Tensor
    """(out, in) or (out, in, kh, kw)"""

    def delta(self, weight: Tensor) -> Tensor:
        return self.weight

    def apply(self, layer: Layer, x: Tensor, output: Tensor) -> Tensor:
        return run(layer, self.weight, x)


Term = LowRank | Kronecker | Gain | Dense


def run(layer: Layer, weight: Tensor, x: Tensor) -> Tensor:
    """x, (n, ..., in) or (n, in, h, w), through other weights, with the layer's stride and padding."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    assert layer.groups == 1, "no network of ours has grouped convolutions"
    padding: Any = layer.padding
    return F.conv2d(x, weight, stride=layer.stride, padding=padding, dilation=layer.dilation)


def across(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """Multiply the channels of x, (n, ..., r) or (n, r, h, w), by a weight (out, r)."""
    return F.linear(x, weight) if isinstance(layer, nn.Linear) else F.conv2d(x, weight[:, :, None, None])
