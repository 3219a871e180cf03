"""Writes the networks as a folder that `StableDiffusionPipeline.from_pretrained` loads."""

import json
import shutil
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel

from safelight.lifecycle.mini.image_encoder_folder import is_paired, name_image_encoder
from safelight.lifecycle.mini.mini import MINI
from safelight.lifecycle.mini.sampling import assemble

PARTS = ("model_index.json", "safelight.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")


def export(
    folder: Path,
    *,
    autoencoder: AutoencoderKL,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    tokenizer: Path,
) -> None:
    """Replace the model in `folder` by these networks in fp16; its README, licences and image encoder stay.

    The model's index leaves the image encoder out until it has been trained for this text encoder.
    """
    pipeline = assemble(autoencoder=autoencoder, text_encoder=text_encoder, unet=unet, tokenizer=tokenizer)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(partial, safe_serialization=True)
    pipeline.to(torch.float32)
    # One vocabulary, in the plain files that every loader of CLIP reads, instead of what transformers 5 writes.
    shutil.rmtree(partial / "tokenizer")
    shutil.copytree(tokenizer, partial / "tokenizer")
    # transformers 5 loads at the dtype named here, diffusers in float32: without this the two disagree.
    config = json.loads((partial / "text_encoder/config.json").read_text("utf-8"))
    (partial / "text_encoder/config.json").write_text(
        json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", "utf-8"
    )
    (partial / "safelight.json").write_text(json.dumps({"defaults": MINI.defaults}, indent=2) + "\n", "utf-8")
    tidy(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        old = folder / (part + ".old")
        if (folder / part).exists():
            (folder / part).rename(old)
        (partial / part).rename(folder / part)
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    shutil.rmtree(partial)
    if is_paired(folder):
        name_image_encoder(folder)


def tidy(folder: Path) -> None:
    """Make the files readable by all, and remove the local paths that diffusers writes into them."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text("utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
