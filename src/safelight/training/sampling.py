"""Sample grids: fixed prompts and seeds, never picked, to see what a run has learnt."""

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

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


def draw_grid(
    model: Path, target: Path, *, prompts: tuple[str, ...] = GRID, steps: int = 20, guidance: float = 4.0, seed: int = 0
) -> None:
    """One column a prompt, one row a style, one seed a cell."""
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    rows: list[list[Image.Image]] = []
    for row, style in enumerate(STYLES):
        generators = [
            torch.Generator().manual_seed(seed + len(prompts) * row + column) for column in range(len(prompts))
        ]
        asked = [prompt + style for prompt in prompts]
        made = pipeline(asked, num_inference_steps=steps, guidance_scale=guidance, generator=generators)
        rows.append(made.images)  # pyright: ignore
    paste(rows).save(target)


def paste(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures of one size, side by side and row under row."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height))
    return sheet
