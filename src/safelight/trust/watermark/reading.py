"""From a picture to what a mark says, at one place: residual, spectrum, evidence of each wave, decoded bits."""

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from safelight.trust.watermark.keys import WatermarkKey
from safelight.trust.watermark.pattern import Complexes, Floats, correlation, pattern, shifted
from safelight.trust.watermark.payload import decode

FINE, COARSE = 0.5, 1.6
"""Deviations of the two Gaussians whose difference passes the mark's band, in canonical pixels."""
WINDOW = 7
GROUND = 0.8
"""Deviation that is added to the local one, in grey levels: noise on flat ground is not blown up."""
LIMIT = 0.8
MIN_Z_UNMOVED = 4.0
"""Fit that proves a mark, with the checksum, where it lies as it was put: one place to look, and not 16 384."""


def residual(grey: Floats) -> Floats:
    """(h, w) canonical picture -> (h, w) that is mostly mark: band-passed, levelled out, without extremes."""
    band = gaussian_filter(grey, FINE, truncate=3) - gaussian_filter(grey, COARSE, truncate=3)
    level = np.sqrt(np.maximum(uniform_filter(band * band, WINDOW), 0)) + np.float32(GROUND)
    return np.clip(band / level, -LIMIT, LIMIT)


def levelled(cells: Complexes) -> Complexes:
    """(..., cells) -> (..., cells): mostly phase, so that the picture's own periods do not drown the mark."""
    size = np.abs(cells)
    return cells / (size + np.float32(0.5) * np.median(size, axis=-1, keepdims=True) + np.float32(1e-9))


def peaks(cells: Complexes, key: WatermarkKey) -> tuple[Floats, Floats, Floats]:
    """(n, cells), levelled -> the best fit of the known pattern in each: z, rows down, columns right, all (n,)."""
    fit = correlation(cells[:, pattern(key).sync], key)
    flat = fit.reshape(len(cells), -1)
    best = flat.argmax(axis=1)
    down, right = np.divmod(best, fit.shape[2])
    return np.take_along_axis(flat, best[:, None], axis=1)[:, 0], down.astype(np.float32), right.astype(np.float32)


def fit_at(cells: Complexes, key: WatermarkKey, *, right: float | Floats = 0) -> Floats:
    """How well the known pattern fits at one place, in standard deviations of noise.

    Args:
        cells: (..., cells), levelled.
        right: how far right the mark lies, in canonical pixels; one number, or (..., 1).

    Returns:
        (...).
    """
    sync = pattern(key).sync
    spread = np.sqrt(np.sum(np.abs(cells[..., sync]) ** 2, axis=-1) / 2)
    return np.sum(along_phase(cells, key, right=right)[..., sync], axis=-1) / (spread + np.float32(1e-12))


def along_phase(cells: Complexes, key: WatermarkKey, *, down: float = 0, right: float | Floats = 0) -> Floats:
    """(..., cells): the part of each wave that has the key's phase, for a mark that lies at this shift."""
    return (shifted(cells, down, right) * pattern(key).phase.conj()).real


def read_at(cells: Complexes, key: WatermarkKey, *, down: float = 0, right: float = 0) -> tuple[bytes, bool]:
    """Decode the bits of a mark that lies at this shift, in canonical pixels.

    Args:
        cells: (cells,), levelled.

    Returns:
        The eight-byte asset id, and whether its checksum is right; what noise says has seldom one.
    """
    return decode(pattern(key).sums(along_phase(cells, key, down=down, right=right)))
