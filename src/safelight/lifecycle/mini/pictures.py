"""The denoiser's training data: cached latents, sampled by concept, then style, then colour, with new captions."""

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safelight.lifecycle.mini.captions import Subject, caption_pair, names_of, read_aliases, without_colours
from safelight.lifecycle.mini.mini import MiniRecipe


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """One batch: clean latents and their captions."""

    latents: Tensor
    captions: list[str]
    unstyled: list[str]
    """The same captions without their style words."""


class Pictures:
    """The latents of every picture, and its captions; held-out combinations are separate."""

    def __init__(self, recipe: MiniRecipe, artwork: Path, out: Path) -> None:
        self.recipe = recipe
        self.latents = torch.from_numpy(np.load(out / "latents.npy"))
        self.about: list[dict[str, Any]] = json.loads((artwork / "pictures.json").read_text("utf-8"))
        self.views: list[tuple[int, str | None]] = json.loads((out / "views.json").read_text("utf-8"))
        self.plain = {row: view for view, (row, background) in enumerate(self.views) if background is None}
        self.coloured: dict[int, list[int]] = defaultdict(list)
        for view, (row, background) in enumerate(self.views):
            if background is not None:
                self.coloured[row].append(view)
        concepts = {entry["slug"]: entry for entry in json.loads((artwork / "concepts.json").read_text("utf-8"))}
        aliases = read_aliases()
        self.names = {slug: names_of(entry["label"], aliases) for slug, entry in concepts.items()}
        self.keywords: dict[str, list[str]] = {slug: entry["keywords"] for slug, entry in concepts.items()}
        held = set(json.loads((artwork / "holdout.json").read_text("utf-8")))
        self.held = [row for row, about in enumerate(self.about) if about["key"] in held]
        # concept -> style -> (rows in the artist's colours, rows of recoloured copies)
        self.tree: dict[str, dict[str, tuple[list[int], list[int]]]] = defaultdict(
            lambda: defaultdict(lambda: ([], []))
        )
        for row, about in enumerate(self.about):
            if about["key"] not in held:
                self.tree[about["concept"]][about["style"]][not about["own_colour"]].append(row)
        self.core = [slug for slug in self.tree if concepts[slug]["core"]]
        self.others = [slug for slug in self.tree if not concepts[slug]["core"]]

    def draw(self, seed: int, count: int) -> DrawnBatch:
        """Sample a batch; it depends only on the seed."""
        draw = random.Random(seed)
        views = self.choose(draw, count)
        pairs = [caption_pair(self.subject(view), self.recipe.captions, draw) for view in views]
        return DrawnBatch(self.latents[views].float(), [caption for caption, _ in pairs], [bare for _, bare in pairs])

    def choose(self, draw: random.Random, count: int) -> list[int]:
        """Views: by concept first, then style, then colour."""
        denoiser = self.recipe.denoiser
        views: list[int] = []
        for _ in range(count):
            concept = draw.choice(self.core if draw.random() < denoiser.core_share else self.others)
            own, copies = self.tree[concept][draw.choice(list(self.tree[concept]))]
            copied = copies and (not own or draw.random() < denoiser.copy_share)
            row = draw.choice(copies if copied else own)
            on_colour = row in self.coloured and draw.random() < denoiser.background_share
            views.append(draw.choice(self.coloured[row]) if on_colour else self.plain[row])
        return views

    def full_caption(self, row: int) -> str:
        """The plain caption of a picture on white, which is also the prompt for a held-out combination."""
        return self.plain_caption(self.plain[row])

    def plain_caption(self, view: int) -> str:
        """A caption that names colour, concept, style and background, once each."""
        subject = self.subject(view)
        colour = "" if subject.own_colour else subject.colour + " "
        name = without_colours(subject.names[0]) if colour else subject.names[0]
        background = f" on a {subject.background} background" if subject.background else ""
        return f"{colour}{name}{background}, {subject.style} style"

    def subject(self, view: int) -> Subject:
        row, background = self.views[view]
        about = self.about[row]
        return Subject(
            names=self.names[about["concept"]],
            keywords=self.keywords[about["concept"]],
            style=about["style"],
            colour=about["colour"],
            own_colour=about["own_colour"],
            background=background,
        )
