"""The image encoder learns which captions are true of a picture, is written beside the model, and is read back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.lifecycle.mini.test_train_judge import make_artwork

from safelight.errors import CorruptModel
from safelight.lifecycle.mini.captions import Subject
from safelight.lifecycle.mini.image_encoder import contrastive_loss, train_image_encoder, truths
from safelight.lifecycle.mini.mini import MINI
from safelight.lifecycle.training.rates import Until
from safelight.models.checkpoints.catalogue import MINI as SHIPPED
from safelight.models.vision.similarity import open_similarity

TOY = replace(
    MINI, image_encoder=replace(MINI.image_encoder, side=32, patch=8, width=64, layers=1, heads=1, batch=16, ema=0.5)
)


def subject(style: str, colour: str, *, own: bool = True, background: str | None = None) -> Subject:
    return Subject(names=["cat"], keywords=[], style=style, colour=colour, own_colour=own, background=background)


def test_a_caption_is_true_of_all_that_has_what_it_says() -> None:
    subjects = [subject("noto", "red"), subject("flat", "red"), subject("noto", "blue", own=False)]
    captions = ["cat", "red cat, flat style", "blue cat"]
    assert truths(captions, subjects, ["cat"] * 3).tolist() == [
        [True, True, False],  # in the artist's colours, in any style
        [False, True, False],
        [False, False, True],
    ]
    assert truths(["cat", "cat", "cat"], subjects, ["cat", "dog", "cow"]).equal(torch.eye(3, dtype=torch.bool))


def test_the_loss_is_least_where_all_true_captions_are_near() -> None:
    true = torch.tensor([[True, True], [True, True]])
    even, uneven = torch.zeros(2, 2), torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    assert contrastive_loss(even, true) < contrastive_loss(uneven, true)
    assert contrastive_loss(uneven, torch.eye(2, dtype=torch.bool)) < contrastive_loss(even, true)


@pytest.mark.filterwarnings("ignore")  # transformers warns about its own optional parts
def test_it_is_trained_resumed_written_and_read(tmp_path: Path) -> None:
    make_artwork(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED, folder)
    with pytest.raises(CorruptModel, match="image-encoder"):
        open_similarity(without_encoder(tmp_path / "bare"))
    train_image_encoder(TOY, tmp_path, tmp_path, folder, until=Until(steps=3))
    numbers = train_image_encoder(TOY, tmp_path, tmp_path, folder, until=Until(steps=5))
    similarity = open_similarity(folder)
    assert similarity.metrics == numbers | {"steps": 5}
    assert json.loads((folder / "model_index.json").read_text())["image_encoder"][1] == "CLIPVisionModelWithProjection"
    red, words = similarity.embed_images([Image.new("RGB", (50, 40), "red")]), similarity.embed_prompts(["a", "b c"])
    assert red.shape == (1, 256)
    assert words.shape == (2, 256)
    assert torch.allclose(words.norm(dim=1), torch.ones(2), atol=1e-5)  # float32
    (folder / "text_encoder/model.safetensors").write_bytes(b"another one")
    open_similarity.cache_clear()
    with pytest.raises(CorruptModel, match="another text encoder"):
        open_similarity(folder)


def without_encoder(folder: Path) -> Path:
    shutil.copytree(SHIPPED, folder)
    shutil.rmtree(folder / "image_encoder", ignore_errors=True)
    return folder
