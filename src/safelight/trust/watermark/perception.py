"""How much a place hides, and how alike two pictures look."""

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, minimum_filter, uniform_filter

from safelight.trust.watermark.pattern import Floats

PEAK = 255.0
C1, C2 = np.float32((0.01 * PEAK) ** 2), np.float32((0.03 * PEAK) ** 2)
"""The constants of SSIM."""
FLAT = 2.0
"""Local deviation below which a place counts as flat, in grey levels."""


def deviation(grey: Floats) -> Floats:
    """(h, w) -> (h, w): local standard deviation, kept low beside flat ground, where noise would show."""
    mean = uniform_filter(grey, 9)
    variance = uniform_filter(grey * grey, 9) - mean * mean
    return gaussian_filter(minimum_filter(np.sqrt(np.maximum(variance, 0)), 5), 3, truncate=3)


class Similarity:
    """SSIM to one picture (Wang et al. 2004): Gaussian window of deviation 1.5, looked through at every fourth pixel.

    Args:
        grey: (h, w), 0 to 255.
    """

    def __init__(self, grey: Floats) -> None:
        self.grey = grey
        self.down, self.right = windows(grey.shape[0]), windows(grey.shape[1])
        self.mean = self.averaged(grey)
        self.variance = self.averaged(grey * grey) - self.mean**2

    def averaged(self, values: Floats) -> Floats:
        """(h, w) -> (h / 4, w / 4): through each window."""
        return self.down @ values @ self.right.T

    def of(self, other: Floats) -> float:
        """Mean SSIM of a picture (h, w) to this one."""
        change = other - self.grey
        shift = self.averaged(change)
        changed = self.averaged(change * change) - shift**2
        together = self.variance + self.averaged(self.grey * change) - self.mean * shift
        mean = self.mean + shift
        luminance = (2 * self.mean * mean + C1) / (self.mean**2 + mean**2 + C1)
        # With d the change, cov(a, a + d) = var a + cov(a, d), and var a + var(a + d) = 2 cov(a, a + d) + var d.
        structure = (2 * together + C2) / (2 * together + changed + C2)
        return float(np.mean(luminance * structure))


@lru_cache(maxsize=16)
def windows(length: int) -> Floats:
    """(length / 4, length): weights of the pixels in each window along one side; each row sums to 1."""
    distance = np.arange(length) - np.arange(2, length, 4)[:, None]
    weights = np.where(np.abs(distance) <= 5, np.exp(-0.5 * (distance / 1.5) ** 2), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def psnr_db(mean_squared_error: float) -> float:
    """Peak signal to noise ratio in decibels; 100 at most, where nothing differs."""
    return float(10 * np.log10(PEAK**2 / max(mean_squared_error, PEAK**2 / 1e10)))
