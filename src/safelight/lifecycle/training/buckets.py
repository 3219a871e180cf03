"""Aspect-ratio buckets: sizes of about the same area whose sides are multiples of a step."""

from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
"""Width and height in pixels."""
MAX_ASPECT_RATIO = 3.0
"""Pictures with a larger ratio of the longer to the shorter side are cropped to it."""


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """For each side, the largest size of at most resolution² pixels; the square is one of them."""
    square = max(step, resolution // step * step)
    found = {(square, square)}
    for side in range(step, int(square * MAX_ASPECT_RATIO**0.5) + 1, step):
        other = max(step, resolution * resolution // side // step * step)
        if max(side, other) / min(side, other) <= MAX_ASPECT_RATIO:
            found |= {(side, other), (other, side)}
    return sorted(found)


def nearest_size(size: Size, buckets: list[Size]) -> Size:
    """The bucket of the closest aspect ratio; of two equal ones, the larger."""
    ratio = size[0] / size[1]

    def distance(bucket: Size) -> tuple[float, int]:
        bucket_ratio = bucket[0] / bucket[1]
        return max(bucket_ratio / ratio, ratio / bucket_ratio), -bucket[0] * bucket[1]

    return min(buckets, key=distance)


@dataclass(frozen=True, slots=True)
class Crop:
    """Fits a picture to its bucket: scale it to cover the bucket, then crop the middle."""

    bucket: Size
    scaled: Size
    left: int
    top: int

    def apply(self, image: Image.Image) -> Image.Image:
        box = (self.left, self.top, self.left + self.bucket[0], self.top + self.bucket[1])
        return image.resize(self.scaled, Image.Resampling.LANCZOS).crop(box)


def crop_for(size: Size, bucket: Size) -> Crop:
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    scaled = max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale))
    return Crop(bucket, scaled, (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2)
