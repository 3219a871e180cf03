"""A CLIP of one's own against transformers' own way through it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny_models import start_picture

from safelight.errors import CorruptModel
from safelight.models.checkpoints.catalogue import MINI
from safelight.models.vision.clip_similarity import MEAN, STD, open_clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tiny, of random weights, with mini's words."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(MINI / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=small | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(3)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_pictures_and_prompts_are_embedded_as_transformers_embeds_them(folder: Path) -> None:
    clip = open_clip(folder)
    pictures = [start_picture(32, 32), Image.new("RGB", (32, 32), "red")]
    pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])).float() / 255
    normal = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    tokens = clip.tokenizer(["a cat", "a much longer prompt"], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = clip.network(pixel_values=normal.permute(0, 3, 1, 2), **tokens)
    torch.testing.assert_close(clip.embed_images(pictures), theirs.image_embeds, rtol=1e-4, atol=1e-5)
    found = clip.embed_prompts(["a cat", "a much longer prompt"])
    torch.testing.assert_close(found, theirs.text_embeds, rtol=1e-4, atol=1e-5)


def test_a_folder_without_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptModel, match="is no CLIP model of transformers"):
        open_clip(tmp_path)
    with pytest.raises(CorruptModel, match="is no CLIP model of transformers"):
        open_clip(MINI / "text_encoder")
