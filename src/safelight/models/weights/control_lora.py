"""A Control-LoRA (Stability AI's, for SDXL): a ControlNet stored as low-rank differences from its base model.

    input_blocks.1.0.in_layers.2.up, .down    their product is added to the model's weight to give the ControlNet's
    input_hint_block..., zero_convs..., biases, norms    complete, as in a ControlNet
    lora_controlnet                           empty: marks the format

Imports no torch until weights are made.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MARK = "lora_controlnet"
Shapes = Mapping[str, tuple[int, ...]]


def full_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the ControlNet's tensors; for any other file, its own shapes."""
    factors = low_rank_factors(shapes)
    made = {f"{module}.weight": (up[0], *down[1:]) for module, (up, down) in factors.items()}
    parts = {f"{module}.{half}" for module in factors for half in ("up", "down")}
    return {name: shape for name, shape in shapes.items() if name not in parts and name != MARK} | made


def low_rank_factors(shapes: Shapes) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the shapes of both factors by module; empty for any other file."""
    if MARK not in shapes:
        return {}
    modules = [name.removesuffix(".up") for name in shapes if name.endswith(".up")]
    pairs = {module: (shapes[f"{module}.up"], shapes.get(f"{module}.down", ())) for module in modules}
    return {module: (up, down) for module, (up, down) in pairs.items() if up and down}


def restore_weight(weight: "Tensor", up: "Tensor", down: "Tensor") -> "Tensor":
    """Return the ControlNet's weight: `weight` (any shape) + up @ down, in the dtype and on the device of `weight`.

    Raises:
        RuntimeError: the factors' product has another number of elements.
    """
    product = up.to(weight.device).float().flatten(1) @ down.to(weight.device).float().flatten(1)
    return (weight.float() + product.reshape(weight.shape)).to(weight.dtype)
