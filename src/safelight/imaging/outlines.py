"""Control images for ControlNets: lines, white on black. Pillow in, Pillow out.

Scribbles and line art use the formulas of ControlNet's community, with one difference: they use the brightness, where
the originals require every colour channel to be darker than its surroundings, and so lose the outline of a red apple.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Plane = NDArray[np.float32]
"""(h, w)"""
TAN_22 = np.tan(np.pi / 8)
CANNY_THRESHOLDS = (100.0, 200.0)
SCRIBBLE_THRESHOLD = 16.0
SOFT_SIGMAS = (1.0, 2.0)


def canny(image: Image.Image, thresholds: tuple[float, float] | None = None) -> Image.Image:
    """Canny edges (1986), in the variant of OpenCV: 3x3 Sobel, |gx| + |gy|, no blur.

    A line starts where the gradient exceeds the higher threshold, and continues while it exceeds the lower one.
    """
    low, high = sorted(thresholds or CANNY_THRESHOLDS)
    gx, gy = strongest_channel(*sobel(levels(image)))
    magnitude = np.abs(gx) + np.abs(gy)
    ridge = is_ridge(magnitude, gx, gy)
    return to_image(255.0 * connected(ridge & (magnitude > low), ridge & (magnitude > high)))


def soft_edge(image: Image.Image) -> Image.Image:
    """Grey lines, brighter at stronger edges: the gradient magnitude at two scales."""
    magnitude = np.zeros(image.size[::-1], dtype=np.float32)
    for sigma in SOFT_SIGMAS:
        gx, gy = strongest_channel(*sobel(blurred(levels(image), sigma)))
        magnitude += np.hypot(gx, gy)
    return to_image(255.0 * magnitude / max(float(np.percentile(magnitude, 99.5)), 16.0))


def scribble(image: Image.Image) -> Image.Image:
    """Broad strokes, black or white: the difference of two blurs (XDoG)."""
    bright = brightness(image)
    darker = blurred(bright, 5.0) - blurred(bright, 0.5)
    return to_image(255.0 * (darker > SCRIBBLE_THRESHOLD))


def lineart(image: Image.Image) -> Image.Image:
    """The strokes of a drawing: areas darker than their surroundings, normalised in strength."""
    bright = brightness(image)
    darker = (blurred(bright, 6.0) - bright).clip(0, 255)
    strokes = darker[darker > 8]
    strength = max(16.0, float(np.median(strokes))) if strokes.size else 16.0
    return to_image(darker / strength * 127.0)


def invert(image: Image.Image) -> Image.Image:
    """Invert drawings that are black on white."""
    return ImageOps.invert(image.convert("RGB"))


def levels(image: Image.Image) -> NDArray[np.float32]:
    """Return (h, w, 3), 0 to 255."""
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def brightness(image: Image.Image) -> Plane:
    return np.asarray(image.convert("L"), dtype=np.float32)


def to_image(plane: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(plane.clip(0, 255).astype(np.uint8)).convert("RGB")


def sobel(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the gradients of each channel to the right and downwards, (h, w, c); edges are padded by repetition."""
    p = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_rows = p[:-2] + 2 * p[1:-1] + p[2:]
    smooth_columns = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    right, down = smooth_rows[:, 2:] - smooth_rows[:, :-2], smooth_columns[2:] - smooth_columns[:-2]
    return right.astype(np.float32), down.astype(np.float32)


def strongest_channel(gx: NDArray[np.float32], gy: NDArray[np.float32]) -> tuple[Plane, Plane]:
    """Return at each pixel the gradient of the channel in which it is largest."""
    best = (np.abs(gx) + np.abs(gy)).argmax(axis=2)[..., None]
    return np.take_along_axis(gx, best, axis=2)[..., 0], np.take_along_axis(gy, best, axis=2)[..., 0]


def is_ridge(magnitude: Plane, gx: Plane, gy: Plane) -> NDArray[np.bool_]:
    """Non-maximum suppression along the gradient; of two equal neighbours, the first in reading order is no ridge."""
    p = np.pad(magnitude, 1)

    def neighbour(down: int, right: int) -> Plane:
        return p[1 + down : 1 + down + magnitude.shape[0], 1 + right : 1 + right + magnitude.shape[1]]

    x, y = np.abs(gx), np.abs(gy)
    across = (magnitude > neighbour(0, -1)) & (magnitude >= neighbour(0, 1))
    down = (magnitude > neighbour(-1, 0)) & (magnitude >= neighbour(1, 0))
    falling = (magnitude > neighbour(-1, -1)) & (magnitude > neighbour(1, 1))
    rising = (magnitude > neighbour(-1, 1)) & (magnitude > neighbour(1, -1))
    slanted = np.where((gx < 0) ^ (gy < 0), rising, falling)
    return np.where(y < x * TAN_22, across, np.where(y > x / TAN_22, down, slanted))


def connected(weak: NDArray[np.bool_], strong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the strong pixels, and the weak ones connected to them."""
    width = weak.shape[1] + 2
    left = np.pad(weak & ~strong, 1).ravel()
    found = np.pad(strong, 1).ravel()
    steps = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    front = np.flatnonzero(found)
    while front.size:
        neighbours = np.unique(front[:, None] + steps)
        front = neighbours[left[neighbours]]
        left[front], found[front] = False, True
    return found.reshape(-1, width)[1:-1, 1:-1]


def blurred(pixels: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur, mirrored at the edges."""
    radius = max(1, round(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        length = pixels.shape[axis]
        neighbours = [(radius, radius) if side == axis else (0, 0) for side in range(pixels.ndim)]
        # An image narrower than the blur cannot be mirrored that far.
        padded = np.pad(pixels, neighbours, mode="reflect" if length > radius else "edge")
        total = np.zeros_like(pixels)
        for offset, weight in enumerate(weights):
            total += weight * padded.take(range(offset, offset + length), axis=axis)
        pixels = total
    return pixels
