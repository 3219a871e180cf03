"""The judge: a classifier that names concept, style and colour of a picture.

It learnt from real artwork only (`training/judge.py`), never from generated pictures, and shares nothing with the
model it judges. `accuracy` says how often it is right on artwork that it has not seen: what it cannot tell there, it
cannot tell of a generated picture.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).with_name("judge")
SIDE = 64
"""Pixels; larger pictures are averaged down."""


class JudgeNetwork(nn.Module):
    """From 64x64 down to 2x2 by strided convolutions with residual ones between, then one linear head a question."""

    def __init__(self, heads: dict[str, int], *, channels: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.start = nn.Conv2d(3, channels[0], 5, stride=2, padding=2)
        self.levels = nn.Sequential(
            *(
                nn.Sequential(Residual(before), nn.Conv2d(before, after, 3, stride=2, padding=1), Residual(after))
                for before, after in zip((channels[0], *channels), channels, strict=False)
            )
        )
        self.norm = nn.GroupNorm(8, channels[-1])
        self.heads = nn.ModuleDict({name: nn.Linear(channels[-1], count) for name, count in heads.items()})

    def features(self, images: Tensor) -> Tensor:
        """(b, 3, 64, 64) in -1..1 -> (b, 256)."""
        return F.silu(self.norm(self.levels(self.start(images)))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by question."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


@dataclass(frozen=True, slots=True)
class Judge:
    network: JudgeNetwork
    classes: dict[str, list[str]]
    """The answers to each question: `concept`, `style`, `colour`."""
    accuracy: dict[str, float]
    """On artwork held out from its training."""

    @torch.inference_mode()
    def rank(self, images: Sequence[Image.Image], question: str) -> list[list[str]]:
        """The answers for each picture, the likeliest first."""
        names = self.classes[question]
        logits = torch.cat([self.network(as_input(images[i : i + 64]))[question] for i in range(0, len(images), 64)])
        return [[names[place] for place in row] for row in logits.argsort(dim=1, descending=True).tolist()]

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.cat([self.network.features(as_input(images[i : i + 64])) for i in range(0, len(images), 64)])


def open_judge(folder: Path = FOLDER) -> Judge:
    about: dict[str, Any] = json.loads((folder / "judge.json").read_text("utf-8"))
    network = JudgeNetwork({name: len(names) for name, names in about["classes"].items()})
    network.load_state_dict({name: weight.float() for name, weight in load_file(folder / "judge.safetensors").items()})
    return Judge(network.eval(), about["classes"], about["accuracy"])


def as_input(images: Sequence[Image.Image]) -> Tensor:
    """(b, 3, 64, 64) in -1..1."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
