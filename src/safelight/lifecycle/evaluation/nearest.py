"""A second measure of style: which of the artists' drawings of the concept is nearest to the picture?

The judge's style network classifies concepts that it was not trained on, by their shading. This measure also uses
outlines and colours, so it tolerates soft or uneven areas, but misjudges a concept with an outline of its own.
"""

import torch

from safelight.lifecycle.evaluation.prompt_adherence import DrawnSet, Measure, Score, read_prompts
from safelight.lifecycle.evaluation.similarity import Artwork, coarse_pixels

NEAREST = Measure(name="style of the nearest drawing", prompts="styles", questions=("style",), top=1, target=0.90)


def score_nearest(drawn: DrawnSet, artwork: Artwork) -> Score:
    """How often the nearest drawing of the concept, by coarse pixels, is in the requested style.

    Concepts without a drawing in the artwork are skipped.
    """
    things = {name: min(right["concept"]) for name, right in read_prompts()["concepts"]}
    right = asked = 0
    for judged, picture in zip(drawn.prompts, coarse_pixels(drawn.pictures), strict=True):
        if drawings := artwork.drawings.get(things[judged.prompt.partition(",")[0]]):
            distances = torch.cdist(picture[None], coarse_pixels(list(drawings.values())))[0]
            right += list(drawings)[int(distances.argmin())] in judged.right["style"]
            asked += 1
    return Score(NEAREST, right, asked)
