"""Draws: by concept, style, colour; what is held out is never drawn."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from safelight.lifecycle.mini.mini import MINI
from safelight.lifecycle.mini.pictures import Pictures

RECIPE = replace(MINI, denoiser=replace(MINI.denoiser, core_share=0.95))


def make(folder: Path) -> Pictures:
    """Twenty concepts in two styles; the number stored in the latents is the row."""
    rows = [(f"thing-{n}", style, own) for n in range(20) for style in ("noto", "flat") for own in (True, False)]
    pictures = [
        {"concept": slug, "style": style, "colour": "red", "own_colour": own, "key": f"{slug}/{style}/{own}"}
        for slug, style, own in rows
    ]
    concepts = [{"slug": f"thing-{n}", "label": f"thing {n}", "keywords": [], "core": n < 5} for n in range(20)]
    (folder / "pictures.json").write_text(json.dumps(pictures))
    (folder / "concepts.json").write_text(json.dumps(concepts))
    (folder / "holdout.json").write_text(json.dumps([picture["key"] for picture in pictures[::9]]))
    views = [(row, background) for row in range(len(rows)) for background in (None, "blue")]
    (folder / "views.json").write_text(json.dumps(views))
    latents = np.broadcast_to(
        np.array([row for row, _ in views], np.float16)[:, None, None, None], (len(views), 4, 2, 2)
    )
    np.save(folder / "latents.npy", latents)
    return Pictures(RECIPE, folder, folder)


def test_held_out_combinations_are_never_drawn(tmp_path: Path) -> None:
    pictures = make(tmp_path)
    drawn = {int(row) for seed in range(400) for row in pictures.draw(seed, 64).latents[:, 0, 0, 0].tolist()}
    assert drawn.isdisjoint(pictures.held)
    assert drawn | set(pictures.held) == set(range(80))


def test_popular_concepts_are_drawn_nineteen_times_in_twenty(tmp_path: Path) -> None:
    pictures = make(tmp_path)
    rows = [int(row) for seed in range(50) for row in pictures.draw(seed, 64).latents[:, 0, 0, 0].tolist()]
    core = sum(row < 20 for row in rows) / len(rows)
    assert abs(core - 0.95) < 0.02  # five standard deviations of 3200 draws


def test_a_batch_depends_on_its_seed_alone(tmp_path: Path) -> None:
    pictures = make(tmp_path)
    first, _, again = pictures.draw(1, 8), pictures.draw(2, 8), pictures.draw(1, 8)
    assert first.captions == again.captions
    assert first.latents.equal(again.latents)
