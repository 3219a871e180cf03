"""From a picture to what a ControlNet is shown: lines, white on black. Pillow in, Pillow out.

Scribbles and line art are drawn by the formulas that ControlNet's community uses, with one difference: they look at the
brightness, where those want each colour to be darker than its surroundings, and so lose the outline of a red apple.
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
    """Thin lines where brightness jumps (Canny 1986), in the variant of OpenCV: 3x3 Sobel, |gx| + |gy|, no blur.

    A line begins where the jump is above the higher threshold, and goes on for as long as it is above the lower.
    """
    low, high = sorted(thresholds or CANNY_THRESHOLDS)
    gx, gy = strongest(*sobel(levels(image)))
    size = np.abs(gx) + np.abs(gy)
    ridge = is_ridge(size, gx, gy)
    return to_image(255.0 * connected(ridge & (size > low), ridge & (size > high)))


def soft_edge(image: Image.Image) -> Image.Image:
    """Grey lines, stronger where the edge is: the size of the gradient, at two scales."""
    size = np.zeros(image.size[::-1], dtype=np.float32)
    for sigma in SOFT_SIGMAS:
        gx, gy = strongest(*sobel(blurred(levels(image), sigma)))
        size += np.hypot(gx, gy)
    return to_image(255.0 * size / max(float(np.percentile(size, 99.5)), 16.0))


def scribble(image: Image.Image) -> Image.Image:
    """Broad strokes, black or white: the difference of two blurs (XDoG)."""
    bright = brightness(image)
    darker = blurred(bright, 5.0) - blurred(bright, 0.5)
    return to_image(255.0 * (darker > SCRIBBLE_THRESHOLD))


def lineart(image: Image.Image) -> Image.Image:
    """The strokes of a drawing: what is darker than its surroundings, brought to one strength."""
    bright = brightness(image)
    darker = (blurred(bright, 6.0) - bright).clip(0, 255)
    strokes = darker[darker > 8]
    strength = max(16.0, float(np.median(strokes))) if strokes.size else 16.0
    return to_image(darker / strength * 127.0)


def invert(image: Image.Image) -> Image.Image:
    """For drawings that are black on white."""
    return ImageOps.invert(image.convert("RGB"))


def levels(image: Image.Image) -> NDArray[np.float32]:
    """(h, w, 3), 0 to 255."""
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def brightness(image: Image.Image) -> Plane:
    return np.asarray(image.convert("L"), dtype=np.float32)


def to_image(plane: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(plane.clip(0, 255).astype(np.uint8)).convert("RGB")


def sobel(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How fast each channel brightens to the right and downwards; edge pixels are repeated beyond the edges."""
    p = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_rows = p[:-2] + 2 * p[1:-1] + p[2:]
    smooth_columns = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    right, down = smooth_rows[:, 2:] - smooth_rows[:, :-2], smooth_columns[2:] - smooth_columns[:-2]
    return right.astype(np.float32), down.astype(np.float32)


def strongest(gx: NDArray[np.float32], gy: NDArray[np.float32]) -> tuple[Plane, Plane]:
    """The gradient of that channel in which it is largest."""
    best = (np.abs(gx) + np.abs(gy)).argmax(axis=2)[..., None]
    return np.take_along_axis(gx, best, axis=2)[..., 0], np.take_along_axis(gy, best, axis=2)[..., 0]


def is_ridge(size: Plane, gx: Plane, gy: Plane) -> NDArray[np.bool_]:
    """Where no neighbour along the gradient is larger; of two alike, the first in reading order is none."""
    p = np.pad(size, 1)

    def neighbour(down: int, right: int) -> Plane:
        return p[1 + down : 1 + down + size.shape[0], 1 + right : 1 + right + size.shape[1]]

    x, y = np.abs(gx), np.abs(gy)
    across = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    down = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    falling = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    rising = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    slanted = np.where((gx < 0) ^ (gy < 0), rising, falling)
    return np.where(y < x * TAN_22, across, np.where(y > x / TAN_22, down, slanted))


def connected(weak: NDArray[np.bool_], strong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The strong places, and the weak ones that touch them in a chain."""
    width = weak.shape[1] + 2
    left = np.pad(weak & ~strong, 1).ravel()
    found = np.pad(strong, 1).ravel()
    steps = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    front = np.flatnonzero(found)
    while front.size:
        around = np.unique(front[:, None] + steps)
        front = around[left[around]]
        left[front], found[front] = False, True
    return found.reshape(-1, width)[1:-1, 1:-1]


def blurred(pixels: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian, mirrored at the edges."""
    radius = max(1, round(4 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        length = pixels.shape[axis]
        around = [(radius, radius) if side == axis else (0, 0) for side in range(pixels.ndim)]
        # A picture narrower than the blur cannot be mirrored so far.
        padded = np.pad(pixels, around, mode="reflect" if length > radius else "edge")
        total = np.zeros_like(pixels)
        for place, tap in enumerate(taps):
            total += tap * padded.take(range(place, place + length), axis=axis)
        pixels = total
    return pixels
