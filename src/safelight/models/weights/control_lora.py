"""A Control-LoRA (Stability AI's, for SDXL): a ControlNet kept as low-rank differences to the model that it leads.

    input_blocks.1.0.in_layers.2.up, .down    what is added to the model's own weight to have the net's, as a product
    input_hint_block..., zero_convs..., biases, norms    whole, as in a ControlNet
    lora_controlnet                           empty: the mark of the format

Imports no torch until weights are made.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MARK = "lora_controlnet"
Shapes = Mapping[str, tuple[int, ...]]


def whole_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Of the tensors that the net will have; of any other file, what it has."""
    factors = products(shapes)
    made = {f"{module}.weight": (up[0], *down[1:]) for module, (up, down) in factors.items()}
    parts = {f"{module}.{half}" for module in factors for half in ("up", "down")}
    return {name: shape for name, shape in shapes.items() if name not in parts and name != MARK} | made


def products(shapes: Shapes) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of both factors, by the module whose weight they change; none in any other file."""
    if MARK not in shapes:
        return {}
    modules = [name.removesuffix(".up") for name in shapes if name.endswith(".up")]
    pairs = {module: (shapes[f"{module}.up"], shapes.get(f"{module}.down", ())) for module in modules}
    return {module: (up, down) for module, (up, down) in pairs.items() if up and down}


def restored(weight: "Tensor", up: "Tensor", down: "Tensor") -> "Tensor":
    """The net's weight, in the format and on the device of the model's.

    Raises:
        RuntimeError: the factors make no tensor of that size.
    """
    product = up.to(weight.device).float().flatten(1) @ down.to(weight.device).float().flatten(1)
    return (weight.float() + product.reshape(weight.shape)).to(weight.dtype)
