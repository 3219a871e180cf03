"""Where a mark lies among the spatial frequencies.

A mark is a sum of waves that repeats every 128 canonical pixels in both directions. Its frequencies are whole numbers
of cycles per tile, between 0.06 and 0.25 cycles a pixel: high enough to stand out against most pictures, low enough to
survive JPEG's 8x8 blocks and a halving. A key deals them out: some carry a known pattern that shows where the tile
lies, the others the coded bits, each spread over four frequencies from low to high. Their phases are secret too.

The canonical picture is the picture itself, reduced to 512 pixels on its long side if it is larger. Since the
frequencies are known, the tile is never built: a picture is tested at any scale by its Fourier sums at them.
"""

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, cast

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from safelight.trust.watermark.keys import WatermarkKey
from safelight.trust.watermark.payload import NUM_CODED

Floats = NDArray[np.floating[Any]]
Complexes = NDArray[np.complexfloating[Any, Any]]
"""Both in single precision: half the time, and the mark needs no more."""

CANONICAL_SIDE = 512
TILE = 128
MIN_FREQUENCY, MAX_FREQUENCY = 0.06, 0.25
"""In cycles per canonical pixel."""
CELLS_PER_BIT = 4

TOP = int(MAX_FREQUENCY * TILE)
ROWS = np.arange(-TOP, TOP + 1)
"""Vertical frequencies of a spectrum, in cycles per tile."""
COLUMNS = np.arange(0, TOP + 1)
"""Horizontal ones: the other half of the plane is the conjugate of this one."""
RADIUS = np.hypot(ROWS[:, None], COLUMNS) / TILE
IN_BAND = (RADIUS > MIN_FREQUENCY) & (RADIUS < MAX_FREQUENCY) & (COLUMNS > 0)
CELL_ROWS, CELL_COLUMNS = np.nonzero(IN_BAND)
CELL_RADIUS = RADIUS[IN_BAND].astype(np.float32)
NUM_CELLS = len(CELL_RADIUS)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """What each cell, that is each frequency of the band, means under one key."""

    phase: Complexes
    """(cells,) of absolute value 1."""
    sync: NDArray[np.intp]
    """(sync cells,): cells of the known pattern."""
    data: NDArray[np.intp]
    """(1056,): cells that carry bits."""
    bit: NDArray[np.intp]
    """(1056,): the coded bit that each of them carries."""

    def signs(self, coded: Floats) -> Floats:
        """(cells,) signs of the waves that carry the (264,) coded bits, which are -1 and 1."""
        signs = np.ones(NUM_CELLS, np.float32)
        signs[self.data] = coded[self.bit]
        return signs

    def sums(self, values: Floats) -> Floats:
        """(264,): for each coded bit, the sum of its cells' values; `values` is (cells,)."""
        return np.bincount(self.bit, values[self.data], NUM_CODED).astype(np.float32)


@lru_cache(maxsize=256)
def pattern(key: WatermarkKey) -> Pattern:
    """Deal out the cells by SHAKE-256 (FIPS 202) of the key: no generator's stream that a library may change."""
    stream = hashlib.shake_256(key.derive("pattern, version 1")).digest(12 * NUM_CELLS)
    angles, order, places = np.frombuffer(stream, "<u4").reshape(3, NUM_CELLS)
    shuffled = np.argsort(order, kind="stable")
    num_data = CELLS_PER_BIT * NUM_CODED
    data = shuffled[:num_data]
    # Every bit gets one of the lowest frequencies, one of the next, and so on: no damage of one band loses it.
    data = data[np.argsort(CELL_RADIUS[data], kind="stable")]
    bands = places[:num_data].reshape(CELLS_PER_BIT, NUM_CODED)
    return Pattern(
        phase=np.exp(2j * np.pi * angles / 2**32).astype(np.complex64),
        sync=shuffled[num_data:],
        data=data,
        bit=np.argsort(bands, axis=1, kind="stable").ravel(),
    )


@lru_cache(maxsize=16)
def waves(length: int, axis: Literal["down", "across"], pitch: float = 1) -> Complexes:
    """(length, frequencies): exp(2 pi i k x / (128 pitch)) at pixels x, with `pitch` pixels per canonical pixel."""
    turns = np.outer(np.arange(length), ROWS if axis == "down" else COLUMNS) / (TILE * pitch)
    return np.exp(2j * np.pi * turns).astype(np.complex64)


def synthesise(amplitudes: Complexes, height: int, width: int) -> Floats:
    """Return the (height, width) sum of waves with these (cells,) complex amplitudes, scaled to variance 1."""
    spectrum = np.zeros(IN_BAND.shape, np.complex64)
    spectrum[IN_BAND] = amplitudes / np.sqrt(np.sum(np.abs(amplitudes) ** 2) / 2)
    columns = waves(height, "down") @ spectrum
    across = waves(width, "across").T
    return columns.real @ across.real - columns.imag @ across.imag


def spectra(residual: Floats, pitches: list[float]) -> Complexes:
    """Return the (pitches, cells) Fourier sums of a (h, w) residual at the cells' frequencies, at each scale."""
    height, width = residual.shape
    across = np.concatenate([waves(width, "across", pitch) for pitch in pitches], axis=1)
    # Two real products: numpy would turn the residual into complex numbers for one of twice the work.
    rows = (residual @ across.real) - 1j * (residual @ across.imag)
    by_pitch = rows.reshape(height, len(pitches), len(COLUMNS)).transpose(1, 0, 2)
    down = np.stack([waves(height, "down", pitch).conj().T for pitch in pitches])
    return (down @ by_pitch)[:, CELL_ROWS, CELL_COLUMNS]


@cache
def mirrored_cells() -> NDArray[np.intp]:
    """(cells,): where the cell of the opposite vertical frequency lies."""
    index = np.zeros(IN_BAND.shape, np.intp)
    index[IN_BAND] = np.arange(NUM_CELLS)
    return index[::-1][IN_BAND]


def mirror(cells: Complexes) -> Complexes:
    """(..., cells) of a picture -> those of its mirror image: F(ky, -kx) is the conjugate of F(-ky, kx)."""
    return cells[..., mirrored_cells()].conj()


def shifted(cells: Complexes, down: float, right: float | Floats) -> Complexes:
    """(..., cells) of a mark that lies so many canonical pixels down and right -> those of one at the origin."""
    turns = (ROWS[CELL_ROWS] * down + COLUMNS[CELL_COLUMNS] * right) / TILE
    return cells * np.exp(2j * np.pi * turns).astype(np.complex64)


def correlation(sync_cells: Complexes, key: WatermarkKey) -> Floats:
    """(..., sync cells) -> (..., 128, 128): how well the known pattern fits at every shift, in standard deviations."""
    known = pattern(key)
    grid = np.zeros((*sync_cells.shape[:-1], TILE, TILE // 2 + 1), np.complex64)
    rows, columns = ROWS[CELL_ROWS[known.sync]], COLUMNS[CELL_COLUMNS[known.sync]]
    grid[..., rows, columns] = sync_cells * known.phase[known.sync].conj()
    fit = cast(Floats, scipy.fft.irfft2(grid, (TILE, TILE), axes=(-2, -1)))
    return fit / (fit.std(axis=(-2, -1), keepdims=True) + np.float32(1e-12))
