"""The exported folder is a Stable Diffusion pipeline, in half precision, replaced as a whole."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from safelight.lifecycle.mini.export import export
from safelight.lifecycle.mini.mini import MINI, AutoencoderRecipe, DenoiserRecipe, MiniRecipe, TextRecipe
from safelight.lifecycle.mini.networks import new_autoencoder, new_text_encoder, new_unet
from safelight.lifecycle.mini.tokenizer import train_tokenizer
from safelight.models.checkpoints.digest import file_sum

TOY = replace(
    MINI,
    text=TextRecipe(vocabulary=600, max_length=16, width=16, layers=1, heads=2, feed_forward=32),
    autoencoder=AutoencoderRecipe(channels=(8, 8), norm_groups=4),
    denoiser=DenoiserRecipe(channels=(16, 32), heads=(2, 2), norm_groups=4),
)


def write(recipe: MiniRecipe, folder: Path, tokenizer: Path) -> None:
    torch.manual_seed(0)
    export(
        folder,
        autoencoder=new_autoencoder(recipe),
        text_encoder=new_text_encoder(recipe),
        unet=new_unet(recipe),
        tokenizer=tokenizer,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("own", [True, False])
def test_an_image_encoder_stays_in_the_index_while_it_goes_with_the_text_encoder(tmp_path: Path, own: bool) -> None:
    train_tokenizer(["red apple"] * 4, TOY.text, tmp_path / "tokenizer")
    folder = tmp_path / "mini"
    write(TOY, folder, tmp_path / "tokenizer")
    (folder / "image_encoder").mkdir()
    text_encoder = file_sum(folder / "text_encoder/model.safetensors") if own else "another"
    (folder / "image_encoder/pair.json").write_text(json.dumps({"text_encoder": text_encoder}))
    write(TOY, folder, tmp_path / "tokenizer")
    assert (json.loads((folder / "model_index.json").read_text())["image_encoder"] != [None, None]) is own


@pytest.mark.filterwarnings("ignore")  # diffusers and transformers warn about their own optional parts
def test_an_export_loads_as_a_pipeline_and_draws(tmp_path: Path) -> None:
    train_tokenizer(["red apple"] * 4, TOY.text, tmp_path / "tokenizer")
    folder = tmp_path / "mini"
    folder.mkdir()
    (folder / "README.md").write_text("kept")
    write(TOY, folder, tmp_path / "tokenizer")
    write(TOY, folder, tmp_path / "tokenizer")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "model_index.json", "safelight.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    ]  # fmt: skip
    weights = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config["timestep_spacing"] == "trailing"
    picture = pipeline("red apple", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (128, 128, 3)
    assert np.isfinite(picture).all()
