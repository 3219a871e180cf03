"""Networks that enlarge pictures: ESRGAN's (arXiv:1809.00219) and the compact one of Real-ESRGAN (arXiv:2107.10833).

Weights come from safetensors files in the names of either generation of trainers, or from ncnn's files: numbers one
after another in the order of the network's layers, which is the order of the modules here.
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, pixel_shuffle

from safelight.errors import CorruptModel

SCALE = 4
RESIDUAL = 0.2
"""How much of a block's output is added to its input."""
NCNN_HALF = 0x01306B47
"""Before weights in half precision; 0 stands before weights in single precision."""
NAMES = (
    (r"^params(_ema)?\.", ""),
    (r"^model\.0\.", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
    (r"^model\.3\.", "conv_up1."),
    (r"^model\.6\.", "conv_up2."),
    (r"^model\.8\.", "conv_hr."),
    (r"^model\.10\.", "conv_last."),
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
)
"""How older trainers, and the first ESRGAN, named the same layers."""


def convolution(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def active(x: Tensor) -> Tensor:
    return leaky_relu(x, 0.2)


class DenseBlock(nn.Module):
    """Five convolutions, each of which reads all before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (convolution(width + i * growth, growth) for i in range(4))
        self.conv5 = convolution(width + 4 * growth, width)

    def forward(self, x: Tensor) -> Tensor:
        read = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            read = torch.cat([read, active(conv(read))], dim=1)
        return x + RESIDUAL * self.conv5(read)


class Block(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class Esrgan(nn.Module):
    """Four times as large."""

    def __init__(self, *, blocks: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.conv_first = convolution(3, width)
        self.body = nn.Sequential(*(Block(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (convolution(width, width) for _ in range(4))
        self.conv_last = convolution(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1]."""
        first = self.conv_first(x)
        x = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            x = active(conv(interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(active(self.conv_hr(x)))


class Compact(nn.Module):
    """What is added to the picture's own pixels, four times as large; an order of magnitude quicker."""

    def __init__(self, *, layers: int = 16, width: int = 64) -> None:
        super().__init__()
        body: list[nn.Module] = [convolution(3, width), nn.PReLU(width)]
        for _ in range(layers):
            body += [convolution(width, width), nn.PReLU(width)]
        self.body = nn.Sequential(*body, convolution(width, 3 * SCALE**2))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1]."""
        return pixel_shuffle(self.body(x), SCALE) + interpolate(x, scale_factor=SCALE, mode="nearest")


Network = Esrgan | Compact


def weight_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Of the network that tensors of these shapes become: in single precision, and each once where a file has two."""
    ours = {renamed(name): prod(shape) for name, shape in shapes.items()}
    return sum(ours.values()) * torch.float32.itemsize


def from_tensors(tensors: Mapping[str, Tensor], *, where: Path) -> Network:
    """
    Raises:
        CorruptModel: these are not the tensors of such a network.
    """
    ours = {renamed(name): tensor for name, tensor in tensors.items()}
    try:
        network = shaped_like(ours)
        network.load_state_dict({name: ours[name].float() for name in network.state_dict()}, assign=True)
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        raise CorruptModel(f"{where} holds no ESRGAN that enlarges four times: {error}") from None
    return network


def shaped_like(tensors: Mapping[str, Tensor]) -> Network:
    with torch.device("meta"):
        if "conv_first.weight" not in tensors:
            numbers = [int(name.split(".")[1]) for name in tensors if name.startswith("body.")]
            return Compact(layers=(max(numbers) - 2) // 2, width=len(tensors["body.0.weight"]))
        blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))
        growth = len(tensors["body.0.rdb1.conv1.weight"])
        return Esrgan(blocks=blocks, width=len(tensors["conv_first.weight"]), growth=growth)


def renamed(name: str) -> str:
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def from_ncnn(network: Network, path: Path) -> Network:
    """The network with the numbers of an ncnn file.

    Raises:
        CorruptModel: the file is shorter or longer than the network.
    """
    data, place = path.read_bytes(), 0
    try:
        for module in ncnn_order(network):
            if isinstance(module, nn.Conv2d):
                place = fill(module.weight, data, place, tagged=True)
                assert module.bias is not None
                place = fill(module.bias, data, place)
            else:
                place = fill(module.weight, data, place)
    except (struct.error, ValueError) as error:
        raise CorruptModel(f"{path} is cut off: {error}") from None
    if place != len(data):
        raise CorruptModel(f"{path} has {len(data)} bytes, and its network {place}")
    return network


def ncnn_order(network: Network) -> Iterator[nn.Conv2d | nn.PReLU]:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.PReLU):
            yield module


@torch.no_grad()
def fill(parameter: Tensor, data: bytes, place: int, *, tagged: bool = False) -> int:
    """Take the parameter's numbers from `place` on, and return where the next begin."""
    half = False
    if tagged:
        [tag] = struct.unpack_from("<I", data, place)
        half, place = tag == NCNN_HALF, place + 4
        if tag not in (0, NCNN_HALF):
            raise ValueError(f"weights in a number format of ncnn's that is not read here ({tag:#x})")
    numbers = np.frombuffer(data, np.float16 if half else np.float32, count=parameter.numel(), offset=place)
    parameter.copy_(torch.from_numpy(numbers.astype(np.float32)).view(parameter.shape))
    return place + -(-numbers.nbytes // 4) * 4
