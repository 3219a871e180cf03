"""A second opinion on style, which knows the thing: which of the artists' drawings of it is nearest to the picture?

The judge's network was made to tell the styles of things that it has never seen, by how they are shaded. This looks at
outlines and colours, too, and so forgives soft or uneven areas; a thing with an outline of its own it would mistake.
"""

import torch

from safelight.lifecycle.evaluation.prompt_adherence import DrawnSet, Measure, Score, read_prompts
from safelight.lifecycle.evaluation.similarity import Artwork, coarse_pixels

NEAREST = Measure(name="style of the nearest drawing", prompts="styles", questions=("style",), top=1, target=0.90)


def score_nearest(drawn: DrawnSet, artwork: Artwork) -> Score:
    """How often, by coarse pixels, the nearest drawing of the thing is the one in the style that was asked for.

    Things that the artwork has no drawing of are left out.
    """
    things = {name: min(right["concept"]) for name, right in read_prompts()["concepts"]}
    right = asked = 0
    for ask, picture in zip(drawn.asked, coarse_pixels(drawn.pictures), strict=True):
        if drawings := artwork.drawings.get(things[ask.prompt.partition(",")[0]]):
            distances = torch.cdist(picture[None], coarse_pixels(list(drawings.values())))[0]
            right += list(drawings)[int(distances.argmin())] in ask.right["style"]
            asked += 1
    return Score(NEAREST, right, asked)
