"""Sample grids of fixed prompts and seeds, to look at the progress of a run."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from safelight.imaging.grid import paste
from safelight.lifecycle.mini.networks import new_scheduler

GRID = (
    "red apple",
    "smiling face",
    "blue car",
    "cat face",
    "slice of pizza",
    "dog face",
    "yellow star",
    "red heart",
    "house",
    "rose",
    "green frog",
    "basketball",
    "purple butterfly",
    "ghost",
    "fire",
    "snowman",
)
STYLES = ("", ", noto style", ", flat style", ", glossy style")


def assemble(
    *, autoencoder: AutoencoderKL, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, tokenizer: Path
) -> StableDiffusionPipeline:
    """The networks as a diffusers pipeline."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        unet=unet,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        scheduler=new_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def draw_grid(
    pipeline: StableDiffusionPipeline,
    *,
    prompts: tuple[str, ...] = GRID,
    styles: tuple[str, ...] = STYLES,
    steps: int = 20,
    guidance: float = 3.0,
    guidance_rescale: float = 0.7,
    seed: int = 0,
) -> Image.Image:
    """One column a prompt, one row a style, one seed a cell."""
    pipeline.set_progress_bar_config(disable=True)
    rows: list[list[Image.Image]] = []
    for row, style in enumerate(styles):
        generators = [
            torch.Generator().manual_seed(seed + len(prompts) * row + column) for column in range(len(prompts))
        ]
        asked = [prompt + style for prompt in prompts]
        made = pipeline(
            asked,
            num_inference_steps=steps,
            guidance_scale=guidance,
            guidance_rescale=guidance_rescale,
            generator=generators,
        )
        rows.append(made.images)  # pyright: ignore
    return paste(rows)
