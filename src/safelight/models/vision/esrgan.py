"""Upscaling networks: ESRGAN (arXiv:1809.00219) and the compact one of Real-ESRGAN (arXiv:2107.10833).

Weights come from safetensors files with the names of either generation of trainers, or from ncnn's files: plain
numbers in the order of the network's layers, which is the order of the modules here.
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
"""Factor of a block's output in its residual sum."""
NCNN_HALF = 0x01306B47
"""Tag before weights in half precision; the tag before weights in single precision is 0."""
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
"""Patterns of the layer names of older trainers and the first ESRGAN, and ours."""


def convolution(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def activate(x: Tensor) -> Tensor:
    """Apply leaky ReLU; the result has the same shape."""
    return leaky_relu(x, 0.2)


class DenseBlock(nn.Module):
    """Five convolutions, each of which reads the outputs of all before it; (b, width, h, w) in and out."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (convolution(width + i * growth, growth) for i in range(4))
        self.conv5 = convolution(width + 4 * growth, width)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features = torch.cat([features, activate(conv(features))], dim=1)
        return x + RESIDUAL * self.conv5(features)


class Block(nn.Module):
    """Three dense blocks with a residual connection; (b, width, h, w) in and out."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class Esrgan(nn.Module):
    """ESRGAN, four times larger."""

    def __init__(self, *, blocks: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.conv_first = convolution(3, width)
        self.body = nn.Sequential(*(Block(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (convolution(width, width) for _ in range(4))
        self.conv_last = convolution(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (b, 3, h, w) in [0, 1] to (b, 3, 4 h, 4 w)."""
        first = self.conv_first(x)
        x = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            x = activate(conv(interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(activate(self.conv_hr(x)))


class Compact(nn.Module):
    """A network that predicts the difference from a nearest-neighbour upscale by four; ten times faster."""

    def __init__(self, *, layers: int = 16, width: int = 64) -> None:
        super().__init__()
        body: list[nn.Module] = [convolution(3, width), nn.PReLU(width)]
        for _ in range(layers):
            body += [convolution(width, width), nn.PReLU(width)]
        self.body = nn.Sequential(*body, convolution(width, 3 * SCALE**2))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (b, 3, h, w) in [0, 1] to (b, 3, 4 h, 4 w)."""
        return pixel_shuffle(self.body(x), SCALE) + interpolate(x, scale_factor=SCALE, mode="nearest")


Network = Esrgan | Compact


def weight_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the bytes of the network in single precision; a tensor that a file has twice counts once."""
    ours = {renamed(name): prod(shape) for name, shape in shapes.items()}
    return sum(ours.values()) * torch.float32.itemsize


def from_tensors(tensors: Mapping[str, Tensor], *, path: Path) -> Network:
    """
    Raises:
        CorruptModel: the tensors (any shape) are not those of a supported network.
    """
    ours = {renamed(name): tensor for name, tensor in tensors.items()}
    try:
        network = build_like(ours)
        network.load_state_dict({name: ours[name].float() for name in network.state_dict()}, assign=True)
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        raise CorruptModel(f"{path} is not a 4x ESRGAN network: {error}") from None
    return network


def build_like(tensors: Mapping[str, Tensor]) -> Network:
    """Build the network on the meta device, with the sizes that its tensors (any shape) show."""
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
    """Fill the network with the numbers of an ncnn file.

    Raises:
        CorruptModel: the file is shorter or longer than the network.
    """
    data, offset = path.read_bytes(), 0
    try:
        for module in ncnn_order(network):
            if isinstance(module, nn.Conv2d):
                offset = fill_parameter(module.weight, data, offset, tagged=True)
                assert module.bias is not None
                offset = fill_parameter(module.bias, data, offset)
            else:
                offset = fill_parameter(module.weight, data, offset)
    except (struct.error, ValueError) as error:
        raise CorruptModel(f"{path} is cut off: {error}") from None
    if offset != len(data):
        raise CorruptModel(f"{path} has {len(data)} bytes, but its network needs {offset}")
    return network


def ncnn_order(network: Network) -> Iterator[nn.Conv2d | nn.PReLU]:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.PReLU):
            yield module


@torch.no_grad()
def fill_parameter(parameter: Tensor, data: bytes, offset: int, *, tagged: bool = False) -> int:
    """Fill a parameter of any shape with the numbers from `offset` on, and return the offset after them."""
    half = False
    if tagged:
        [tag] = struct.unpack_from("<I", data, offset)
        half, offset = tag == NCNN_HALF, offset + 4
        if tag not in (0, NCNN_HALF):
            raise ValueError(f"unsupported ncnn weight format ({tag:#x})")
    numbers = np.frombuffer(data, np.float16 if half else np.float32, count=parameter.numel(), offset=offset)
    parameter.copy_(torch.from_numpy(numbers.astype(np.float32)).view(parameter.shape))
    return offset + -(-numbers.nbytes // 4) * 4
