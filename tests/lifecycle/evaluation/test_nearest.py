"""The nearest drawing as a second measure of style."""

import numpy as np
from PIL import Image, ImageFilter

from safelight.lifecycle.evaluation.nearest import score_nearest
from safelight.lifecycle.evaluation.prompt_adherence import DrawnSet, JudgedPrompt, read_prompts
from safelight.lifecycle.evaluation.similarity import Artwork

STYLES = ("noto", "flat", "glossy")


def drawing(seed: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST)


def test_blurred_pictures_are_recognised_and_concepts_without_drawings_are_skipped() -> None:
    names = [(name, min(right["concept"])) for name, right in read_prompts()["concepts"][:3]]
    drawings = {
        slug: {style: drawing(10 * n + k) for k, style in enumerate(STYLES)} for n, (_, slug) in enumerate(names)
    }
    artwork = Artwork(training=[], held_out=[], drawings={slug: drawings[slug] for _, slug in names[:2]})
    asked = [
        JudgedPrompt(f"{name}, {style} style", {"style": frozenset([style])}, 0)
        for name, _ in names
        for style in STYLES
    ]
    pictures = [drawings[slug][style].filter(ImageFilter.GaussianBlur(4)) for _, slug in names for style in STYLES]
    score = score_nearest(DrawnSet("styles", asked, pictures), artwork)
    assert (score.right, score.asked) == (6, 6)
    others = [pictures[3 * thing + (style + 1) % 3] for thing in range(3) for style in range(3)]
    assert score_nearest(DrawnSet("styles", asked, others), artwork).right == 0
