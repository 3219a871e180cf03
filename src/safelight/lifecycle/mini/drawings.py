"""The rendered pictures in memory, downscaled, with their attributes and whether they are held out.

For networks that are trained on pixels; the denoiser is trained on cached latents (`pictures.py`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.lifecycle.mini.captions import Subject, names_of, read_aliases


class Drawings:
    """Every picture at `side` pixels, four channels of bytes, colours premultiplied by alpha."""

    def __init__(self, folder: Path, *, side: int) -> None:
        self.about: list[dict[str, Any]] = json.loads((folder / "pictures.json").read_text("utf-8"))
        self.concepts: list[dict[str, Any]] = json.loads((folder / "concepts.json").read_text("utf-8"))
        held = set(json.loads((folder / "holdout.json").read_text("utf-8")))
        popular = {concept["slug"] for concept in self.concepts if concept["core"]}
        aliases = read_aliases()
        self.names = {concept["slug"]: names_of(concept["label"], aliases) for concept in self.concepts}
        self.keywords: dict[str, list[str]] = {concept["slug"]: concept["keywords"] for concept in self.concepts}
        self.is_held = torch.tensor([row["key"] in held for row in self.about])
        self.is_popular = torch.tensor([row["concept"] in popular for row in self.about])
        stored = np.load(folder / "pictures.npy", mmap_mode="r")
        self.pixels = torch.stack([small(torch.from_numpy(picture.copy()), side) for picture in stored])

    def pictures(self, rows: Tensor, side: int | None = None) -> Tensor:
        """(b, 4, side, side) in 0..1."""
        pixels = self.pixels[rows].float() / 255
        return pixels if side in (None, pixels.shape[-1]) else F.adaptive_avg_pool2d(pixels, side)

    def subject(self, row: int, background: str | None = None) -> Subject:
        about = self.about[row]
        return Subject(
            names=self.names[about["concept"]],
            keywords=self.keywords[about["concept"]],
            style=about["style"],
            colour=about["colour"],
            own_colour=about["own_colour"],
            background=background,
        )


def small(picture: Tensor, side: int) -> Tensor:
    """(h, w, 4) bytes -> (4, side, side) bytes, colours premultiplied by alpha."""
    picture = picture.float().permute(2, 0, 1)
    picture = torch.cat([picture[:3] * picture[3:] / 255, picture[3:]])
    return F.adaptive_avg_pool2d(picture, side).round().byte()
