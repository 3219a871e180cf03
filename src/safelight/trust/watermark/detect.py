"""Ask a picture whose mark it carries: at its own scale (plain), or at all scales and crops (full).

Nothing is known but the keys. A mark is found by its key's known pattern alone (`SURE_Z`), or by a weaker fit of it
whose decoded bits have the right checksum. docs/watermark.md has the false-positive rates behind the thresholds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safelight.trust.watermark.keys import Keyring, WatermarkKey
from safelight.trust.watermark.pattern import CANONICAL_SIDE, Complexes, mirror, spectra
from safelight.trust.watermark.pixels import Pixels, canonical
from safelight.trust.watermark.reading import MIN_Z_UNMOVED, fit_at, levelled, peaks, read_at, residual

SURE_Z = 9.0
"""The known pattern alone is proof."""
MIN_Z = 6.0
"""Proof together with the checksum."""
NUM_DECODED = 4
"""Best fits of a search whose bits are decoded: each may pass the checksum by chance."""
LEAST_SIDE = 112
SIDE_STEP = 2
"""Canonical sides that a full search tries: a mark that is one canonical pixel off at the edges still adds up."""
LADDER = tuple(CANONICAL_SIDE * 0.87**step for step in range(11))
"""Sides at which a residual is made; the ones between are read from the nearest."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a detector found, the best fit even where nothing was."""

    found: bool
    """The picture carries a mark of one of the keys."""
    key_id: str | None
    """Whose, if found."""
    asset: str | None
    """The asset id, 16 hex digits, if the checksum is right; only a ledger knows whether the picture is that asset."""
    z: float
    """Fit of the known pattern, in standard deviations of noise."""
    crc_ok: bool
    scale: float
    """Pixels of this picture to a canonical pixel of the mark."""
    shift: tuple[float, float]
    """Where the mark's tile begins: canonical pixels down and right."""
    mirrored: bool
    search: Literal["plain", "full"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A key, a scale and an orientation at which a picture is read."""

    key: WatermarkKey
    cells: Complexes
    """(cells,), levelled."""
    side: float
    """Long side of the picture in canonical pixels."""
    is_mirrored: bool


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One place of the tile, and how well the known pattern fits there."""

    place: Place
    is_unmoved: bool
    z: float
    down: float
    right: float

    def read(self) -> tuple[bytes, bool]:
        """The asset id, and whether its checksum is right."""
        return read_at(self.place.cells, self.place.key, down=self.down, right=self.right)

    @property
    def excess(self) -> float:
        """z beyond what is needed together with the checksum."""
        return self.z - (MIN_Z_UNMOVED if self.is_unmoved else MIN_Z)


def detect(
    picture: Image.Image | NDArray[np.uint8], keyring: Keyring, *, search: Literal["plain", "full"] = "plain"
) -> Detection:
    """Look for the marks of all keys.

    Args:
        picture: Pillow image of mode RGB, RGBA, L or LA, or uint8 array (h, w), (h, w, 3) or (h, w, 4).
        search: plain reads pictures in their own size, cropped by pixels if they had at most 512, resized from 512 or
            more if not cropped, and mirrored ones; full reads any crop and size whose content is large enough.

    Raises:
        InvalidImage: it is not such a picture.
    """
    image = Pixels.of(picture).shown()
    own_side = min(CANONICAL_SIDE, max(image.size))
    detection = best_of(candidates(image, keyring, sorted({own_side, CANONICAL_SIDE}, reverse=True)), image, "plain")
    if detection.found or search == "plain":
        return detection
    sides = np.arange(LEAST_SIDE, CANONICAL_SIDE + 1, SIDE_STEP)
    return best_of(candidates(image, keyring, [float(side) for side in sides]), image, "full")


def best_of(candidates: Iterator[Candidate], image: Image.Image, search: Literal["plain", "full"]) -> Detection:
    """Decode the most promising candidates and report the first with the right checksum, or else the best fit."""
    promising = sorted(candidates, key=lambda candidate: -candidate.excess)[:NUM_DECODED]
    readings = [(candidate, *candidate.read()) for candidate in promising]
    intact = [reading for reading in readings if reading[2] and reading[0].excess >= 0]
    best = max(readings, key=lambda reading: (not reading[0].is_unmoved, reading[0].z))
    candidate, asset, crc_ok = intact[0] if intact else best
    found = bool(intact) or (candidate.z >= SURE_Z and not candidate.is_unmoved)
    return Detection(
        found=found,
        key_id=candidate.place.key.id if found else None,
        asset=asset.hex() if intact else None,
        z=candidate.z,
        crc_ok=crc_ok,
        scale=max(image.size) / candidate.place.side,
        shift=(candidate.down, candidate.right),
        mirrored=candidate.place.is_mirrored,
        search=search,
    )


def candidates(image: Image.Image, keyring: Keyring, sides: list[float]) -> Iterator[Candidate]:
    """Yield for every key, side and orientation the place where the known pattern fits best, and the unmoved one."""
    for side_of_residual, group in grouped(sides).items():
        residue = residual(canonical(image, side_of_residual))
        pitches = [max(residue.shape) / side for side in group]
        upright = levelled(spectra(residue, pitches))
        for is_mirrored, cells in ((False, upright), (True, mirror(upright))):
            # The last column of a mirrored picture was the first.
            edges = [(residue.shape[1] - 1) / pitch if is_mirrored else 0.0 for pitch in pitches]
            for key in keyring.keys:
                unmoved = fit_at(cells, key, right=np.array(edges, np.float32)[:, None])
                for index, (z, down, right) in enumerate(zip(*peaks(cells, key), strict=True)):
                    at = Place(key=key, cells=cells[index], side=group[index], is_mirrored=is_mirrored)
                    yield Candidate(place=at, is_unmoved=False, z=float(z), down=float(down), right=float(right))
                    yield Candidate(place=at, is_unmoved=True, z=float(unmoved[index]), down=0.0, right=edges[index])


def grouped(sides: list[float]) -> dict[float, list[float]]:
    """Sides by the side at which their residual is made: their own if they are few."""
    if len(sides) <= len(LADDER):
        return {side: [side] for side in sides}
    groups: dict[float, list[float]] = {}
    for side in sides:
        groups.setdefault(min(LADDER, key=lambda rung: abs(np.log(rung / side))), []).append(side)
    return groups
