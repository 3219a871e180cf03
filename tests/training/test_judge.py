"""The judge learns from real artwork and is measured on what it has not seen."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from safelight.evaluation.judge import open_judge
from safelight.training.judge import Artwork, JudgeRecipe, augmented, train_judge

SHAPES = {"disc": "ellipse", "box": "rectangle"}
COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220)}


def make_artwork(folder: Path) -> None:
    """Discs and boxes, red and blue, small and large for two styles; one combination of each is held out."""
    pictures, about = [], []
    for shape, draw in SHAPES.items():
        for style, inset in (("noto", 20), ("flat", 36)):
            for colour, rgb in COLOURS.items():
                image = Image.new("RGBA", (128, 128))
                getattr(ImageDraw.Draw(image), draw)((inset, inset, 127 - inset, 127 - inset), fill=(*rgb, 255))
                pictures.append(np.asarray(image))
                key = f"{shape}/{style}/{colour}"
                about.append({"concept": shape, "style": style, "colour": colour, "own_colour": True, "key": key})
    np.save(folder / "pictures.npy", np.stack(pictures))
    (folder / "pictures.json").write_text(json.dumps(about))
    concepts = [{"slug": shape, "label": shape, "keywords": [], "core": True} for shape in SHAPES]
    (folder / "concepts.json").write_text(json.dumps(concepts))
    (folder / "holdout.json").write_text(json.dumps(["disc/noto/blue", "box/flat/red"]))


def test_held_out_artwork_is_kept_from_training(tmp_path: Path) -> None:
    make_artwork(tmp_path)
    data = Artwork(tmp_path)
    assert len(data.train) == 6
    assert len(data.held) == 2
    assert data.classes == {"concept": ["box", "disc"], "style": ["flat", "noto"], "colour": ["blue", "red"]}


def test_augmented_pictures_stay_pictures(tmp_path: Path) -> None:
    make_artwork(tmp_path)
    data = Artwork(tmp_path)
    images = augmented(data.pixels, JudgeRecipe(), torch.Generator().manual_seed(0))
    assert images.shape == (8, 3, 64, 64)
    assert images.min() >= -1
    assert images.max() <= 1
    again = augmented(data.pixels, JudgeRecipe(), torch.Generator().manual_seed(0))
    assert images.equal(again)


def test_a_judge_learns_what_its_artwork_shows_and_is_read_back(tmp_path: Path) -> None:
    make_artwork(tmp_path)
    recipe = JudgeRecipe(batch=16, noise=0, background=0, zoom=0.05)
    accuracy = train_judge(recipe, tmp_path, tmp_path / "judge", minutes=0.12)
    judge = open_judge(tmp_path / "judge")
    assert judge.accuracy == accuracy
    red, blue = (Image.new("RGB", (100, 100), rgb) for rgb in COLOURS.values())
    assert [order[0] for order in judge.rank([red, blue], "colour")] == ["red", "blue"]
    assert sorted(judge.rank([red], "concept")[0]) == ["box", "disc"]
