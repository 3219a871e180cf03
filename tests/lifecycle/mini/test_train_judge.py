"""The judge learns from real artwork and is measured on what it has not seen."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from safelight.lifecycle.evaluation.judge import open_judge
from safelight.lifecycle.mini.augment import Augmentation, augmented, on_white, without_small_parts
from safelight.lifecycle.mini.train_judge import JudgeBatches, JudgeRecipe, QuestionRecipe, train_judge

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
    data = JudgeBatches(tmp_path)
    assert int(data.train["concept"].sum()) == 6
    assert int(data.held["colour"].sum()) == 2
    assert data.classes == {"concept": ["box", "disc"], "style": ["flat", "noto"], "colour": ["blue", "red"]}


def test_style_is_learnt_without_the_concepts_that_lack_one(tmp_path: Path) -> None:
    make_artwork(tmp_path)
    (tmp_path / "holdout.json").write_text(json.dumps(["disc/noto/blue"]))
    data = JudgeBatches(tmp_path)
    concepts = [row["concept"] for row in data.drawings.about]
    assert {concepts[row] for row in data.train["style"].nonzero()[:, 0].tolist()} == {"box"}
    assert {concepts[row] for row in data.held["style"].nonzero()[:, 0].tolist()} == {"disc"}


def test_small_parts_vanish_and_areas_stay() -> None:
    square = torch.zeros(1, 4, 64, 64)
    square[:, 0::3, 16:48, 16:48] = 1  # red, opaque
    dotted = square.clone()
    dotted[:, 0, 30, 30] = 0
    dotted[:, :, 5, 5] = 1
    assert torch.equal(without_small_parts(dotted), without_small_parts(square))
    changed = (without_small_parts(square) != square).any(dim=1)[0]
    assert changed.any()
    assert not changed[18:46, 18:46].any(), "softened at its outline only"


def test_outlines_waver_and_areas_stay(tmp_path: Path) -> None:
    make_artwork(tmp_path)
    pixels = JudgeBatches(tmp_path).drawings.pictures(torch.arange(8))
    before, after = (
        augmented(pixels, Augmentation(warped=warped), torch.Generator().manual_seed(0)) for warped in (0, 0.01)
    )
    assert torch.allclose(before, on_white(pixels), atol=1e-5)
    change = (after - before).abs().amax(dim=1)
    assert (change.amax(dim=(1, 2)) > 0.1).all(), "outlines move"
    assert change[:, 0].max() < 1e-5, "white stays white"
    assert change[:, 32, 32].max() < 1e-5, "and the inside what it was"


def test_augmented_pictures_stay_pictures(tmp_path: Path) -> None:
    make_artwork(tmp_path)
    pixels = JudgeBatches(tmp_path).drawings.pictures(torch.arange(8))
    how = JudgeRecipe().questions["concept"].how
    images = augmented(pixels, how, torch.Generator().manual_seed(0))
    assert images.shape == (8, 3, 64, 64)
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.equal(augmented(pixels, how, torch.Generator().manual_seed(0)))


def test_a_turned_hue_keeps_a_picture_as_bright_as_it_was(tmp_path: Path) -> None:
    pixels = torch.full((6, 4, 8, 8), 1.0)
    pixels[:, :3] = torch.tensor([0.6, 0.4, 0.35])[:, None, None]
    images = augmented(pixels, Augmentation(rehued=1.0), torch.Generator().manual_seed(0))
    assert torch.allclose(images.mean(dim=1), torch.full((6, 8, 8), 0.45 * 2 - 1), atol=1e-3)  # nothing was cut off
    assert images.std(dim=0).max() > 0.05


def test_a_judge_learns_what_its_artwork_shows_and_is_read_back(tmp_path: Path) -> None:
    make_artwork(tmp_path)
    (tmp_path / "holdout.json").write_text(json.dumps(["disc/noto/blue"]))
    quick = {
        question: QuestionRecipe(side=32, channels=(8, 16), share=share, how=Augmentation(shift=0.05), shading=shading)
        for question, share, shading in (("concept", 0.2, False), ("style", 0.2, True), ("colour", 0.6, False))
    }
    accuracy = train_judge(JudgeRecipe(batch=16, questions=quick), tmp_path, tmp_path / "judge", minutes=0.1)
    judge = open_judge(tmp_path / "judge")
    assert judge.accuracy == accuracy
    red, blue = (Image.new("RGB", (100, 100), rgb) for rgb in COLOURS.values())
    assert [order[0] for order in judge.rank([red, blue], "colour")] == ["red", "blue"]
    assert sorted(judge.rank([red], "concept")[0]) == ["box", "disc"]
