"""Weights in scaled float8, in ComfyUI's format; they are multiplied by their scale when read.

`layer.weight` in float8 comes with `layer.scale_weight` (newer files: `weight_scale`), one number or one per row. The
scales of a layer's inputs are only for kernels that multiply in float8, and are ignored.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from safelight.errors import CorruptModel

SCALES = (".scale_weight", ".weight_scale")
SCALING_SUFFIXES = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
MARK = "scaled_fp8"


class ScaledWeights(Mapping[str, Tensor]):
    """The tensors of a file, with scales applied; scale tensors are left out, other tensors are not copied."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.scales = {
            f"{name.removesuffix(end)}.weight": name for name in tensors for end in SCALES if name.endswith(end)
        }

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if name not in self.scales:
            return tensor
        scale = self.tensors[self.scales[name]].float()
        if scale.numel() not in (1, tensor.shape[0]):
            raise CorruptModel(f"{self.scales[name]} scales neither {name} nor its rows: it is {tuple(scale.shape)}")
        return (tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))).to(torch.bfloat16)

    def __iter__(self) -> Iterator[str]:
        return (
            name for name in self.tensors if not name.endswith(SCALING_SUFFIXES) and name.rpartition(".")[2] != MARK
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)
