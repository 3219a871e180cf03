"""Whether a picture is the one that the ledger knows: a likeness of 32 px, and how far a picture agrees with it.

A watermark can be copied onto another picture, and then says the number of a picture that this is not. The likeness
tells them apart. It is compared without its coarse shades (a difference of the picture and its blur), which drawings on
white and skies share, in colour where the picture has any, and at every place and scale, for the picture may be a part
of what was drawn, or its mirror image.

Measured on 48 pictures of the embedded model and 38 photographs: the same picture after JPEG 30, half size, brightness
1.3, contrast 0.7, in grey, as a screenshot, or cropped by 10, 25 or 40 % a side agrees by 0.74 to 1; of 1500 pairs of
pictures of different prompts, half agree by less than 0.21, 99 % by less than 0.49, all by less than 0.73. Pictures of
one prompt can look the same, and then agree.
"""

from io import BytesIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

SIDE = 32
"""The longer side of a likeness, in pixels."""
FIRST = 4 * SIDE
"""The size from which all others are made, which takes less time than from the picture itself."""
BLUR = 2.0
"""Sigma of what is taken away, in pixels of the likeness."""
SAME = 0.73
"""From here on, a picture is taken for the same."""
GREY = 2.0
"""Largest difference of chroma in a picture without colour."""
FLAT = 1.0
"""Mean deviation, in shades of 255, of a picture in which there is nothing to compare."""
Array = NDArray[np.float32]


def likeness(image: Image.Image) -> bytes:
    """What the ledger keeps of a picture: a PNG of 32 px, 0.3 to 6 kB. It shows the picture: it must be erasable."""
    file = BytesIO()
    shrunk(shrunk(image, FIRST), SIDE).save(file, "PNG", optimize=True)
    return file.getvalue()


def agreement(kept: bytes, image: Image.Image) -> float:
    """How far a picture, or its mirror image, agrees with a likeness: 1 is wholly, 0 not at all. See SAME."""
    with Image.open(BytesIO(kept)) as file:
        known = detail(file.convert("RGB"))
    small = shrunk(image, FIRST)
    return max(best(known, small), best(known, ImageOps.mirror(small)))


def best(known: Array, image: Image.Image) -> float:
    """The best agreement at any place and scale; `known` is (h, w, c)."""
    found = 0.0
    for side in range(SIDE, SIDE // 2 - 1, -1):
        part = detail(shrunk(image, side))
        height, width = min(part.shape[0], known.shape[0]), min(part.shape[1], known.shape[1])
        if part.shape[0] - height > 1 or part.shape[1] - width > 1:
            continue  # it is larger than the likeness by more than rounding
        found = max(found, correlation(known, part[:height, :width]))
    return found


def correlation(known: Array, part: Array) -> float:
    """The largest normalised correlation of `part` (y, x, c) with any place in `known` (h, w, c)."""
    if np.abs(part[..., 1:]).max() < GREY:
        known, part = known[..., :1], part[..., :1]
    height, width, channels = part.shape
    places = sliding_window_view(known, part.shape).reshape(-1, height * width, channels)
    places = (places - places.mean(axis=1, keepdims=True)).reshape(len(places), -1)
    centred = (part - part.mean(axis=(0, 1))).ravel()
    flat = FLAT * np.sqrt(height * width)
    length = float(np.linalg.norm(centred))
    if length < flat:
        return 0.0
    lengths = np.maximum(np.linalg.norm(places, axis=1), flat)
    return float((places @ centred / lengths).max() / length)


def detail(small: Image.Image) -> Array:
    """Luma and chroma (h, w, 3) without what the blur keeps."""
    values = np.asarray(small.convert("YCbCr"), np.float32)
    return (values - gaussian_filter(values, (BLUR, BLUR, 0), mode="nearest")).astype(np.float32)


def shrunk(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
