"""A first, cheap measure of a model: is the artwork nearest to a sample of the concept that was asked for?

Pictures are compared by their colours at 16x16 and their edges at 32x32. No network is involved, so nothing that
was trained on the same data judges it; it is a weak judge, and its own score on real pictures says how weak.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from safelight.training.autoencoder import WHITE, on_background
from safelight.training.captions import names_of, read_aliases


@dataclass(frozen=True, slots=True)
class Gallery:
    """Features of the popular concepts' artwork in its own colours, with the concept and style of each row."""

    features: Tensor
    concepts: list[str]
    styles: list[str]
    names: dict[str, str]


def open_gallery(artwork: Path) -> Gallery:
    about = json.loads((artwork / "pictures.json").read_text("utf-8"))
    entries = json.loads((artwork / "concepts.json").read_text("utf-8"))
    aliases = read_aliases()
    names = {entry["slug"]: names_of(entry["label"], aliases)[0] for entry in entries if entry["core"]}
    rows = [row for row, picture in enumerate(about) if picture["own_colour"] and picture["concept"] in names]
    pixels = np.load(artwork / "pictures.npy", mmap_mode="r")
    features = torch.cat([features_of(on_background(pixels[row], WHITE)[None]) for row in rows])
    return Gallery(features, [about[row]["concept"] for row in rows], [about[row]["style"] for row in rows], names)


def features_of(images: Tensor) -> Tensor:
    """Colours and edges of pictures in -1..1, each kind scaled to weigh the same."""
    colours = F.adaptive_avg_pool2d(images, 16)
    gray = F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 64)
    across, down = gray.diff(dim=-1)[:, :, 1:, :].abs(), gray.diff(dim=-2)[:, :, :, 1:].abs()
    edges = F.adaptive_avg_pool2d(torch.cat([across, down], 1), 32)
    return torch.cat([F.normalize(part.flatten(1) - part.mean(), dim=1) for part in (colours, edges)], dim=1)


def found(
    gallery: Gallery, features: Tensor, asked: list[str], *, not_style: list[str] | None = None
) -> dict[str, float]:
    """Share of pictures whose nearest concept, or one of the five nearest, is the one asked for."""
    distances = torch.cdist(features, gallery.features)
    if not_style:
        same = torch.tensor([[own == other for other in gallery.styles] for own in not_style])
        distances = distances.masked_fill(same, torch.inf)
    ranks: list[int] = []
    for row, concept in zip(distances.argsort(dim=1).tolist(), asked, strict=True):
        order = list(dict.fromkeys(gallery.concepts[index] for index in row))
        ranks.append(order.index(concept))
    return {"top1": sum(rank == 0 for rank in ranks) / len(ranks), "top5": sum(rank < 5 for rank in ranks) / len(ranks)}


def judge_model(
    model: Path, artwork: Path, *, steps: int = 20, guidance: float = 4.0, limit: int | None = None
) -> None:
    """Ask for popular concepts by their everyday name, one seed each, and print how many are found."""
    gallery = open_gallery(artwork)
    print(
        "real pictures, found among the other styles:",
        found(gallery, gallery.features, gallery.concepts, not_style=gallery.styles),
    )
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    asked = list(gallery.names)[:: max(1, len(gallery.names) // limit)] if limit else list(gallery.names)
    made: list[Tensor] = []
    for start in range(0, len(asked), 16):
        chunk = asked[start : start + 16]
        generators = [torch.Generator().manual_seed(start + place) for place in range(len(chunk))]
        pictures = pipeline(
            [gallery.names[concept] for concept in chunk],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        ).images  # pyright: ignore
        made.append(torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1)
    print(
        f"{len(asked)} samples, {steps} steps, guidance {guidance}:",
        found(gallery, features_of(torch.cat(made)), asked),
    )
