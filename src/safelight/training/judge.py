"""Trains the judge (`evaluation/judge.py`) on real artwork, and says how good it is on artwork it has not seen.

    python -m safelight.training.judge --out RUN --minutes 12

Held-out combinations of concept, style and colour are the ones that the generator does not see either.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from safelight.evaluation.judge import FOLDER, SIDE, JudgeNetwork
from safelight.training.averaging import Average
from safelight.training.seeds import seed_of

QUESTIONS = ("concept", "style", "colour")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRecipe:
    batch: int = 48
    rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100
    ema: float = 0.998
    smoothing: float = 0.1
    seed: int = 5
    shift: float = 0.15
    """Of the side, at most; likewise `turn` in radians and `zoom` as a factor either way."""
    turn: float = 0.2
    zoom: float = 0.2
    mirrored: float = 0.3
    background: float = 0.15
    noise: float = 0.1
    blurred: float = 0.5


class Artwork:
    """Pictures of the popular concepts at 64x64, premultiplied, with the answers; held-out rows apart."""

    def __init__(self, folder: Path) -> None:
        about: list[dict[str, Any]] = json.loads((folder / "pictures.json").read_text("utf-8"))
        core = {c["slug"] for c in json.loads((folder / "concepts.json").read_text("utf-8")) if c["core"]}
        held = set(json.loads((folder / "holdout.json").read_text("utf-8")))
        rows = [row for row, picture in enumerate(about) if picture["concept"] in core]
        stored = np.load(folder / "pictures.npy", mmap_mode="r")
        pixels = torch.stack([small(torch.from_numpy(stored[row].copy())) for row in rows])
        self.pixels = pixels
        self.classes = {name: sorted({about[row][name] for row in rows}) for name in QUESTIONS}
        self.answers = {
            name: torch.tensor([self.classes[name].index(about[row][name]) for row in rows]) for name in QUESTIONS
        }
        is_held = torch.tensor([about[row]["key"] in held for row in rows])
        self.train, self.held = (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0]


def small(picture: Tensor) -> Tensor:
    """(h, w, 4) bytes -> (4, 64, 64) in 0..1, colours premultiplied by alpha."""
    picture = picture.float().permute(2, 0, 1) / 255
    picture = torch.cat([picture[:3] * picture[3:], picture[3:]])
    return F.adaptive_avg_pool2d(picture, SIDE)


def augmented(pictures: Tensor, recipe: JudgeRecipe, generator: torch.Generator) -> Tensor:
    """Moved, turned, zoomed, mirrored, blurred, noised and set on a background; (b, 3, 64, 64) in -1..1."""
    count = len(pictures)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * 2 - 1

    angle, zoom = uniform() * recipe.turn, torch.exp(uniform() * recipe.zoom)
    mirror = torch.where(torch.rand(count, generator=generator) < recipe.mirrored, -1.0, 1.0)
    cos, sin, shift = angle.cos() * zoom, angle.sin() * zoom, uniform(2) * 2 * recipe.shift
    across = torch.stack([cos * mirror, -sin, shift[:, 0]], dim=1)
    down = torch.stack([sin * mirror, cos, shift[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, align_corners=False)
    coarse = F.interpolate(F.interpolate(pictures, scale_factor=0.5, mode="area"), SIDE, mode="bilinear")
    blur = (torch.rand(count, 1, 1, 1, generator=generator) < recipe.blurred) * torch.rand(
        count, 1, 1, 1, generator=generator
    )
    pictures = torch.lerp(pictures, coarse, blur)
    on_colour = torch.rand(count, 1, 1, 1, generator=generator) < recipe.background
    background = torch.where(on_colour, torch.rand(count, 3, 1, 1, generator=generator), torch.ones(1))
    flat = pictures[:, :3] + background * (1 - pictures[:, 3:])
    flat = flat * (1 + 0.15 * uniform(1, 1, 1)) + 0.05 * uniform(1, 1, 1)
    noise = (
        torch.randn(flat.shape, generator=generator) * recipe.noise * torch.rand(count, 1, 1, 1, generator=generator)
    )
    return ((flat + noise).clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)


def train_judge(recipe: JudgeRecipe, artwork: Path, folder: Path, *, minutes: float) -> dict[str, float]:
    """Train, write `judge.safetensors` and `judge.json` to `folder`, and return the held-out accuracies."""
    torch.manual_seed(recipe.seed)
    data = Artwork(artwork)
    network = JudgeNetwork({name: len(names) for name, names in data.classes.items()})
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    average = Average(network, recipe.ema)
    began, step = time.time(), 0
    while (progress := (time.time() - began) / (60 * minutes)) < 1:
        rate = recipe.rate * min(1, (step + 1) / recipe.warmup) * (1 + np.cos(np.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(seed_of(recipe.seed, step))
        rows = data.train[torch.randint(len(data.train), (recipe.batch,), generator=generator)]
        logits = network(augmented(data.pixels[rows], recipe, generator))
        loss = torch.stack(
            [
                F.cross_entropy(logits[name], data.answers[name][rows], label_smoothing=recipe.smoothing)
                for name in QUESTIONS
            ]
        ).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        step += 1
        if step % 500 == 0:
            with average.applied():
                numbers = accuracy(network, data)
            shown = "  ".join(f"{name} {number:.3f}" for name, number in numbers.items())
            print(f"{time.time() - began:5.0f} s  step {step}  loss {loss.item():.3f}  held out: {shown}", flush=True)
    with average.applied():
        numbers = accuracy(network, data)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
        save_file(weights, folder / "judge.safetensors")
    about = {"classes": data.classes, "accuracy": numbers, "held_out_pictures": len(data.held), "steps": step}
    (folder / "judge.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return numbers


@torch.no_grad()
def accuracy(network: JudgeNetwork, data: Artwork) -> dict[str, float]:
    """On held-out artwork, on white, as it is."""
    pictures = data.pixels[data.held]
    logits = network(((pictures[:, :3] + 1 - pictures[:, 3:]) * 2 - 1).contiguous(memory_format=torch.channels_last))
    numbers = {
        name: (logits[name].argmax(1) == data.answers[name][data.held]).float().mean().item() for name in QUESTIONS
    }
    five = (
        logits["concept"].topk(min(5, len(data.classes["concept"])), dim=1).indices
        == data.answers["concept"][data.held][:, None]
    )
    return numbers | {"concept_top5": five.any(1).float().mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("mini-run"), help="folder of the run, where artwork/ lies")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the judge is written")
    parser.add_argument("--minutes", type=float, default=12)
    arguments = parser.parse_args()
    print(train_judge(JudgeRecipe(), arguments.out / "artwork", arguments.folder, minutes=arguments.minutes))


if __name__ == "__main__":
    main()
