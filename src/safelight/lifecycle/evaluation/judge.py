"""The judge: classifiers of the concept, style and colour of a picture, one small network per question.

They are trained on real artwork only (`lifecycle/mini/train_judge.py`), never on generated pictures, and share nothing
with the model they judge. `accuracy` is that of each network on held-out artwork, and the limit of what its answers on
generated pictures can mean.
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
        """(b, 3, side, side) in -1..1 -> logits (b, answers)."""
        return self.head(self.features(images))

    def answers(self, images: Tensor) -> Tensor:
        """(b, 3, side, side) in -1..1 -> probabilities (b, answers); `both_ways`: averaged with the mirror image's."""
        views = [images, images.flip(3)] if self.both_ways else [images]
        return torch.stack([self(view).softmax(dim=1) for view in views]).mean(dim=0)

    def features(self, images: Tensor) -> Tensor:
        """(b, 3, side, side) in -1..1 -> the features (b, channels) that the last layer classifies."""
        if self.shading:
            images = torch.cat([images, faint_slopes(images)], dim=1)
        return F.silu(self.norm(self.levels(self.start(images)))).mean(dim=(2, 3))


def faint_slopes(images: Tensor) -> Tensor:
    """Colour differences over three pixels across and down, small ones enlarged and edges saturated: (b, 6, h, w).

    A gradient is a hundredth of an edge, and distinguishes a glossy drawing from a flat one.
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
        """(b, channels, h, w) -> the same shape."""
        return x + self.conv(F.silu(self.norm(x)))


@dataclass(frozen=True, slots=True)
class QuestionNetwork:
    """The network of one question."""

    network: JudgeNetwork
    classes: list[str]
    side: int
    """Pixels; larger pictures are downscaled by averaging."""
    answer_indices: Tensor
    """(answers,) indices of the classes that are possible answers; the network may have been trained on more."""


@dataclass(frozen=True, slots=True)
class Judge:
    networks: Mapping[str, QuestionNetwork]
    """By question: `concept`, `style`, `colour`."""
    accuracy: dict[str, float]
    """On artwork held out from its training."""

    @torch.inference_mode()
    def rank(self, images: Sequence[Image.Image], question: str) -> list[list[str]]:
        """The answers for each picture, the most probable first."""
        judge = self.networks[question]
        parts = [as_input(images[i : i + BATCH], judge.side) for i in range(0, len(images), BATCH)]
        probabilities = torch.cat([judge.network.answers(part) for part in parts])[:, judge.answer_indices]
        names = [judge.classes[index] for index in judge.answer_indices.tolist()]
        return [[names[index] for index in row] for row in probabilities.argsort(dim=1, descending=True).tolist()]

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image], question: str = "concept") -> Tensor:
        """(b, channels) the features that the question's network classifies."""
        judge = self.networks[question]
        parts = [as_input(images[i : i + BATCH], judge.side) for i in range(0, len(images), BATCH)]
        return torch.cat([judge.network.features(part) for part in parts])


def open_judge(folder: Path = FOLDER) -> Judge:
    stored: dict[str, Any] = json.loads((folder / "judge.json").read_text("utf-8"))
    weights = load_file(folder / "judge.safetensors")
    networks: dict[str, QuestionNetwork] = {}
    for question, config in stored["questions"].items():
        classes = config["classes"]
        network = JudgeNetwork(
            len(classes), config["channels"], shading=config["shading"], both_ways=config["both_ways"]
        )
        prefix = question + "."
        own = {name.removeprefix(prefix): each.float() for name, each in weights.items() if name.startswith(prefix)}
        network.load_state_dict(own)
        indices = {name: index for index, name in enumerate(classes)}
        answer_indices = torch.tensor([indices[name] for name in config.get("asked", classes)])
        networks[question] = QuestionNetwork(network.eval(), classes, config["side"], answer_indices)
    return Judge(networks, stored["accuracy"])


def as_input(images: Sequence[Image.Image], side: int) -> Tensor:
    """(b, 3, side, side) in -1..1."""
    small = [image.convert("RGB").resize((side, side), Image.Resampling.BOX) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
