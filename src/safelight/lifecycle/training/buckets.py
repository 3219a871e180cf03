"""Sizes that pictures of like proportions share: about one area, sides of whole steps."""

from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
"""Width and height in pixels."""
WIDEST = 3.0
"""Longer pictures are cut to this proportion of the longer side to the shorter."""


def sizes(resolution: int, step: int) -> list[Size]:
    """Every size of at most resolution² pixels, with the widest first of its height; the square is one of them."""
    square = max(step, resolution // step * step)
    found = {(square, square)}
    for side in range(step, int(square * WIDEST**0.5) + 1, step):
        other = max(step, resolution * resolution // side // step * step)
        if max(side, other) / min(side, other) <= WIDEST:
            found |= {(side, other), (other, side)}
    return sorted(found)


def nearest_size(size: Size, among: list[Size]) -> Size:
    """Of the closest proportion; of two alike, the larger."""
    proportion = size[0] / size[1]

    def distance(one: Size) -> tuple[float, int]:
        ours = one[0] / one[1]
        return max(ours / proportion, proportion / ours), -one[0] * one[1]

    return min(among, key=distance)


@dataclass(frozen=True, slots=True)
class Crop:
    """How a picture becomes one of its bucket: scaled to cover it, then cut in the middle."""

    bucket: Size
    scaled: Size
    left: int
    top: int

    def apply(self, image: Image.Image) -> Image.Image:
        box = (self.left, self.top, self.left + self.bucket[0], self.top + self.bucket[1])
        return image.resize(self.scaled, Image.Resampling.LANCZOS).crop(box)


def cut_for(size: Size, bucket: Size) -> Crop:
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    scaled = max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale))
    return Crop(bucket, scaled, (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2)
