"""The judge: classifiers that name concept, style and colour of a picture, one small network a question.

They learnt from real artwork only (`lifecycle/mini/train_judge.py`), never from generated pictures, and share nothing
with the model they judge. `accuracy` says how often each is right on artwork that it has not seen: what it cannot tell
there, it cannot tell of a generated picture.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).with_name("judge")
BATCH = 64


class JudgeNetwork(nn.Module):
    """Strided convolutions with residual ones between, averaged over the picture, then one linear layer."""

    def __init__(
        self, answers: int, channels: Sequence[int], *, shading: bool = False, both_ways: bool = False
    ) -> None:
        super().__init__()
        self.shading, self.both_ways = shading, both_ways
        self.start = nn.Conv2d(9 if shading else 3, channels[0], 5, stride=2, padding=2)
        self.levels = nn.Sequential(
            *(
                nn.Sequential(Residual(before), nn.Conv2d(before, after, 3, stride=2, padding=1), Residual(after))
                for before, after in pairwise(channels)
            )
        )
        self.norm = nn.GroupNorm(8, channels[-1])
        self.head = nn.Linear(channels[-1], answers)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, side, side) in -1..1 -> logits."""
        return self.head(self.features(images))

    def answers(self, images: Tensor) -> Tensor:
        """(b, 3, side, side) in -1..1 -> how likely each answer is; `both_ways`: on average with the mirror image."""
        seen = [images, images.flip(3)] if self.both_ways else [images]
        return torch.stack([self(each).softmax(dim=1) for each in seen]).mean(dim=0)

    def features(self, images: Tensor) -> Tensor:
        """What the answer is read from."""
        if self.shading:
            images = torch.cat([images, faint_slopes(images)], dim=1)
        return F.silu(self.norm(self.levels(self.start(images)))).mean(dim=(2, 3))


def faint_slopes(images: Tensor) -> Tensor:
    """How colours change over three pixels across and down, small changes enlarged and edges cut off: (b, 6, h, w).

    A gradient is a hundredth of an edge, and what tells a glossy drawing from a flat one.
    """
    smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    across = F.pad(smooth[..., 3:] - smooth[..., :-3], (1, 2, 0, 0))
    down = F.pad(smooth[..., 3:, :] - smooth[..., :-3, :], (0, 0, 1, 2))
    return torch.tanh(15 * torch.cat([across, down], dim=1))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


@dataclass(frozen=True, slots=True)
class QuestionNetwork:
    """The network of one question."""

    network: JudgeNetwork
    classes: list[str]
    side: int
    """Pixels; larger pictures are averaged down."""
    asked: Tensor
    """Of the classes, the places of those that are possible answers: it may have learnt more than is asked of it."""


@dataclass(frozen=True, slots=True)
class Judge:
    eyes: Mapping[str, QuestionNetwork]
    """By question: `concept`, `style`, `colour`."""
    accuracy: dict[str, float]
    """On artwork held out from its training."""

    @torch.inference_mode()
    def rank(self, images: Sequence[Image.Image], question: str) -> list[list[str]]:
        """The answers for each picture, the likeliest first."""
        eye = self.eyes[question]
        parts = [as_input(images[i : i + BATCH], eye.side) for i in range(0, len(images), BATCH)]
        likely = torch.cat([eye.network.answers(part) for part in parts])[:, eye.asked]
        names = [eye.classes[place] for place in eye.asked.tolist()]
        return [[names[place] for place in row] for row in likely.argsort(dim=1, descending=True).tolist()]

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image], question: str = "concept") -> Tensor:
        """What the answer is read from."""
        eye = self.eyes[question]
        parts = [as_input(images[i : i + BATCH], eye.side) for i in range(0, len(images), BATCH)]
        return torch.cat([eye.network.features(part) for part in parts])


def open_judge(folder: Path = FOLDER) -> Judge:
    about: dict[str, Any] = json.loads((folder / "judge.json").read_text("utf-8"))
    weights = load_file(folder / "judge.safetensors")
    eyes: dict[str, QuestionNetwork] = {}
    for question, eye in about["questions"].items():
        network = JudgeNetwork(len(eye["classes"]), eye["channels"], shading=eye["shading"], both_ways=eye["both_ways"])
        start = question + "."
        own = {name.removeprefix(start): each.float() for name, each in weights.items() if name.startswith(start)}
        network.load_state_dict(own)
        places = {name: place for place, name in enumerate(eye["classes"])}
        asked = torch.tensor([places[name] for name in eye.get("asked", eye["classes"])])
        eyes[question] = QuestionNetwork(network.eval(), eye["classes"], eye["side"], asked)
    return Judge(eyes, about["accuracy"])


def as_input(images: Sequence[Image.Image], side: int) -> Tensor:
    """(b, 3, side, side) in -1..1."""
    small = [image.convert("RGB").resize((side, side), Image.Resampling.BOX) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
