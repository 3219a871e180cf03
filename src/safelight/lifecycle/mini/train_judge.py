"""Train the judge (`lifecycle/evaluation/judge.py`), a classifier of artwork, and measure it on held-out artwork.

    python -m safelight.lifecycle.mini.train_judge --out RUN --minutes 95
    python -m safelight.lifecycle.mini.train_judge --out RUN --minutes 38 --only style

The held-out combinations of concept, style and colour are those of the generator. The style classifier is trained
without any concept of which a style is held out, and measured on those concepts: otherwise it could guess the held-out
style by elimination, since it would have seen the concept in the two others.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.lifecycle.evaluation.judge import FOLDER, JudgeNetwork
from safelight.lifecycle.mini.augment import Augmentation, augmented, on_white
from safelight.lifecycle.mini.drawings import Drawings
from safelight.lifecycle.training.averaging import Average
from safelight.lifecycle.training.optimizer import new_optimizers, set_rates
from safelight.lifecycle.training.seeds import seed_of
from safelight.models.networks.placement import fast_dtypes

SIDE = 64
"""Pixels; a question may use fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRecipe:
    side: int
    channels: tuple[int, ...]
    share: float
    """Share of the training time."""
    how: Augmentation
    popular: float = 0.0
    """Share of the batch that is sampled from popular concepts only; the rest is sampled from all."""
    shading: bool = False
    """Also use faint colour gradients (`faint_slopes`) as input."""
    both_ways: bool = False
    """Average with the answer for the mirror image: style has no direction, but some concepts have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRecipe:
    batch: int = 64
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 50
    ema: float = 0.995
    smoothing: float = 0.1
    seed: int = 5
    questions: Mapping[str, QuestionRecipe] = field(
        default_factory=lambda: {
            "concept": QuestionRecipe(
                side=64,
                channels=(32, 64, 128, 256),
                share=0.4,
                popular=0.6,
                how=Augmentation(
                    shift=0.15, turn=0.25, zoom=0.25, stretch=0.12, mirrored=0.4, rehued=0.4, greyed=0.1,
                    blurred=0.5, background=0.15, shade=0.2, noise=0.1,
                ),
            ),
            "style": QuestionRecipe(
                side=64,
                channels=(24, 48, 96, 192),
                share=0.4,
                shading=True,
                both_ways=True,
                how=Augmentation(
                    shift=0.1, turn=0.1, zoom=0.15, mirrored=0.5, blurred=0.5, background=0.1, shade=0.05, noise=0.015,
                    uneven=0.06, warped=0.012, smeared=0.7, halo=0.25,
                ),
                popular=0.5,
            ),
            "colour": QuestionRecipe(
                side=32,
                channels=(24, 48, 96),
                share=0.2,
                how=Augmentation(
                    shift=0.1, turn=0.2, zoom=0.15, mirrored=0.5, blurred=0.3, background=0.05, shade=0.05, noise=0.05
                ),
            ),
        }
    )  # fmt: skip


class JudgeBatches:
    """The artwork with its labels, and the training and held-out rows of each question."""

    def __init__(self, folder: Path) -> None:
        self.drawings = Drawings(folder, side=SIDE)
        about = self.drawings.about
        self.classes = {name: sorted({row[name] for row in about}) for name in ("concept", "style", "colour")}
        popular = {row["concept"] for row, core in zip(about, self.drawings.is_popular, strict=True) if core}
        self.asked = {**self.classes, "concept": sorted(popular)}
        self.answers = {
            name: torch.tensor([names.index(row[name]) for row in about]) for name, names in self.classes.items()
        }
        held, self.popular = self.drawings.is_held, self.drawings.is_popular
        lacking = {row["concept"] for row, is_held in zip(about, held, strict=True) if row["own_colour"] and is_held}
        unknown = torch.tensor([row["concept"] in lacking for row in about])
        self.train = {"concept": ~held, "style": ~held & ~unknown, "colour": ~held}
        self.held = {"concept": held & self.popular, "style": unknown, "colour": held}

    def draw(self, question: str, recipe: QuestionRecipe, count: int, generator: torch.Generator) -> Tensor:
        """Random training rows, (count,) int64."""
        train = self.train[question].nonzero()[:, 0]
        popular = (self.train[question] & self.popular).nonzero()[:, 0]
        among = int(count * recipe.popular)
        return torch.cat(
            [
                rows[torch.randint(len(rows), (number,), generator=generator)]
                for rows, number in ((popular, among), (train, count - among))
            ]
        )


def train_judge(
    recipe: JudgeRecipe, artwork: Path, folder: Path, *, minutes: float, only: str | None = None
) -> dict[str, float]:
    """Train, write `judge.safetensors` and `judge.json` to `folder`, and return the held-out accuracies.

    With `only`, one question is trained again and the networks of the others in the folder stay unchanged.
    """
    data = JudgeBatches(artwork)
    weights: dict[str, Tensor] = load_file(folder / "judge.safetensors") if only else {}
    known = json.loads((folder / "judge.json").read_text("utf-8")) if only else {"accuracy": {}, "questions": {}}
    numbers: dict[str, float] = known["accuracy"]
    about: dict[str, Any] = known["questions"]
    for question, asked in recipe.questions.items():
        if only not in (None, question):
            continue
        share = 1 if only else asked.share
        network, steps = train_question(recipe, question, data, seconds=60 * minutes * share)
        weights = {name: each for name, each in weights.items() if not name.startswith(f"{question}.")}
        numbers |= accuracy(network, question, asked, data)
        print(question, {name: round(number, 4) for name, number in numbers.items()}, flush=True)
        weights |= {f"{question}.{name}": each.half().contiguous() for name, each in network.state_dict().items()}
        about[question] = {
            "side": asked.side,
            "channels": asked.channels,
            "shading": asked.shading,
            "both_ways": asked.both_ways,
            "classes": data.classes[question],
            "asked": data.asked[question],
            "held_out_pictures": int(data.held[question].sum()),
            "steps": steps,
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps({"accuracy": numbers, "questions": about}) + "\n", "utf-8")
    return numbers


def train_question(
    recipe: JudgeRecipe, question: str, data: JudgeBatches, *, seconds: float
) -> tuple[JudgeNetwork, int]:
    """Train the network of one question; returns it with averaged weights, and the number of steps."""
    asked, answers = recipe.questions[question], data.answers[question]
    torch.manual_seed(recipe.seed)
    network = JudgeNetwork(
        len(data.classes[question]), asked.channels, shading=asked.shading, both_ways=asked.both_ways
    )
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizers = new_optimizers(
        network,
        muon_rate=recipe.muon_rate,
        adam_rate=recipe.adam_rate,
        weight_decay=recipe.weight_decay,
        is_matrix=lambda name, param: param.ndim == 4 and not name.startswith("start"),
    )
    average = Average(network, recipe.ema)
    began, step = time.time(), 0
    while (progress := (time.time() - began) / seconds) < 1:
        set_rates(optimizers, min(1, (step + 1) / recipe.warmup) * (1 + math.cos(math.pi * progress)) / 2)
        generator = torch.Generator().manual_seed(seed_of(recipe.seed, step))
        rows = data.draw(question, asked, recipe.batch, generator)
        images = augmented(data.drawings.pictures(rows, asked.side), asked.how, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.bfloat16 in fast_dtypes("cpu")):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), answers[rows], label_smoothing=recipe.smoothing)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
        step += 1
        if step % 100 == 0:
            with average.applied():
                numbers = accuracy(network, question, asked, data)
            shown = "  ".join(f"{name} {number:.3f}" for name, number in numbers.items())
            print(f"{time.time() - began:5.0f} s  step {step}  loss {loss.item():.3f}  held out: {shown}", flush=True)
    for param, shadow in zip(network.parameters(), average.shadow, strict=True):
        param.data.copy_(shadow)
    return network, step


@torch.no_grad()
def accuracy(network: JudgeNetwork, question: str, recipe: QuestionRecipe, data: JudgeBatches) -> dict[str, float]:
    """Accuracy on held-out artwork, on white and without augmentation, among the answers that can be asked for."""
    rows = data.held[question].nonzero()[:, 0]
    parts = [on_white(data.drawings.pictures(part, recipe.side)) for part in rows.split(256)]
    likely = torch.cat([network.answers(part) for part in parts])
    places = torch.tensor([data.classes[question].index(name) for name in data.asked[question]])
    order = places[likely[:, places].argsort(dim=1, descending=True)]
    right = order == data.answers[question][rows][:, None]
    numbers = {question: right[:, 0].double().mean().item()}
    return numbers | ({"concept_top5": right[:, :5].any(1).double().mean().item()} if question == "concept" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("mini-run"), help="folder of the run, which contains artwork/")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder to which the judge is written")
    parser.add_argument("--minutes", type=float, default=95)
    parser.add_argument("--only", choices=list(JudgeRecipe().questions), help="train only this question again")
    arguments = parser.parse_args()
    artwork, folder = arguments.out / "artwork", arguments.folder
    print(train_judge(JudgeRecipe(), artwork, folder, minutes=arguments.minutes, only=arguments.only))


if __name__ == "__main__":
    main()
