"""Put a mark into a picture: as strong as its looks allow, spent where the detector needs it, and read back at once.

Spread spectrum (Cox et al. 1997), informed by the picture (Malvar and Florêncio 2003): after a first try the picture is
compressed as JPEG and read, and the waves of bits that came out weak are strengthened at the others' cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from safelight.trust.watermark.keys import WatermarkKey
from safelight.trust.watermark.pattern import (
    CANONICAL_SIDE,
    CELL_RADIUS,
    CELLS_PER_BIT,
    NUM_CELLS,
    Complexes,
    pattern,
    spectra,
    synthesise,
)
from safelight.trust.watermark.payload import encode
from safelight.trust.watermark.perception import FLAT, PEAK, Similarity, deviation, psnr_db
from safelight.trust.watermark.pixels import Picture, Pixels, canonical, resized
from safelight.trust.watermark.reading import MIN_Z_UNMOVED, along_phase, fit_at, levelled, read_at, residual

ALGORITHM = "safelight.ss.1"
"""Names the pattern, the code and the band: a detector of another version knows what it cannot read."""
LEVELS = ((42.5, 0.9912), (41.0, 0.986), (40.0, 0.9812))
"""PSNR in decibels and SSIM that a marked picture keeps; the next level is for a mark that came out too weak."""
STRONG_Z = 12.0
"""Fit of the known pattern where a mark reads well."""
MIN_PIXELS = 104**2
MIN_SIDE = 48
"""Of the canonical picture: in a smaller one the mark's frequencies cannot be told apart."""
SMALL_SIDE = 384
"""A smaller picture is only asked to survive JPEG 75."""
ROUNDS = 2
"""Of strengthening, at each level."""
AIM = 0.98
"""Share of the allowed error that is aimed at, so that the result is seldom beyond it."""
MAX_ON_FLAT, MAX_AMPLITUDE = 1.3, 6.0
"""In grey levels: deviation of the mark on flat ground, and anywhere."""
CREST = 1.8
"""Largest change, in deviations: on white a pixel five levels darker would show, two do not."""
TEXTURE_SHARE, MAX_DEVIATION = 1.5, 30.0
"""Amplitude in texture: 1 + 1.5 sqrt(deviation) times that on flat ground, up to this deviation."""
MAX_WEIGHT = 1.8


@dataclass(frozen=True, kw_only=True)
class WatermarkOutcome:
    """What became of the mark of one picture."""

    status: Literal["marked", "weak", "unmarked"]
    """marked: it reads, also after JPEG 75. weak: it does not, for more would show; it stays in the picture.
    unmarked: the pixels are as they were."""
    reason: Literal["", "size"] = ""
    """Why a picture is unmarked."""
    algorithm: str = ALGORITHM
    key_id: str
    asset: str
    """16 hex digits."""
    psnr_db: float
    """Of the marked picture to the unmarked one; 100 if they are the same."""
    ssim: float
    z: float
    """Fit of the known pattern, in standard deviations."""


def embed(picture: Picture, key: WatermarkKey, asset: str) -> tuple[Picture, WatermarkOutcome]:
    """Mark a picture; alpha is untouched, and the result is of the same type, mode and size.

    The same picture, key and asset give the same result on one machine with the same versions of numpy, scipy and
    Pillow. A picture that is too small is returned as it is.

    Args:
        picture: Pillow image of mode RGB, RGBA, L or LA, or uint8 array (h, w), (h, w, 3) or (h, w, 4).
        key: the keyring's current one.
        asset: 16 hex digits, as of `asset_id`.

    Raises:
        InvalidImage: it is not such a picture.
    """
    host = Host(Pixels.of(picture))
    if not host.is_large_enough:
        outcome = WatermarkOutcome(
            status="unmarked", reason="size", key_id=key.id, asset=asset, psnr_db=100.0, ssim=1.0, z=0.0
        )
        return picture, outcome
    mark = Mark(key, bytes.fromhex(asset))
    marked = host.marked(mark, gain=host.first_gain)
    status = "weak"
    for level in LEVELS:
        for _ in range(ROUNDS):
            mark.strengthen(marked)
            marked = host.marked(mark, gain=marked.gain * allowance(marked, *level))
        while not marked.looks_like_host(*level):
            marked = host.marked(mark, gain=marked.gain * 0.99 * allowance(marked, *level))
        if mark.is_robust(marked):
            status = "marked"
            break
    if status == "weak" and mark.is_readable(marked):
        status = "marked"
    outcome = WatermarkOutcome(
        status=status,
        key_id=key.id,
        asset=asset,
        psnr_db=psnr_db(marked.error),
        ssim=marked.ssim,
        z=float(fit_at(cells_of(marked.image), key)),
    )
    return marked.pixels.like(picture), outcome


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A picture with a mark of some strength, and how far it is from what it was."""

    pixels: Pixels
    image: Image.Image
    """The canonical picture, mode RGB or L, over white."""
    gain: float
    error: float
    """Mean squared error of the colours."""
    ssim: float

    def looks_like_host(self, min_psnr_db: float, min_ssim: float) -> bool:
        return psnr_db(self.error) >= min_psnr_db and self.ssim >= min_ssim


def allowance(marked: Marked, min_psnr_db: float, min_ssim: float) -> float:
    """How many times stronger the mark may be: both measures fall with the square of its strength, nearly."""
    error = PEAK**2 / 10 ** (min_psnr_db / 10)
    room = min(error / max(marked.error, 1e-3), (1 - min_ssim) / max(1 - marked.ssim, 1e-5))
    return float(np.clip(np.sqrt(AIM * room), 0.2, 5))


class Host:
    """A picture about to be marked.

    Args:
        pixels: of the picture.
    """

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.side = min(CANONICAL_SIDE, max(pixels.size))
        self.grey = canonical(pixels.shown(), self.side)
        hides = deviation(self.grey)
        self.texture = TEXTURE_SHARE * np.sqrt(np.minimum(hides, MAX_DEVIATION))
        self.similarity = Similarity(self.grey)
        # On flat ground low frequencies survive compression best and lower SSIM least; in texture they would drown.
        self.slope = -float(np.mean(hides < FLAT))

    @property
    def is_large_enough(self) -> bool:
        return self.grey.size >= MIN_PIXELS and min(self.grey.shape) >= MIN_SIDE

    @property
    def first_gain(self) -> float:
        error = PEAK**2 / 10 ** (LEVELS[0][0] / 10)
        return float(np.sqrt(error / np.mean((1 + self.texture) ** 2)))

    def marked(self, mark: "Mark", *, gain: float) -> Marked:
        """Add the mark, by `gain` grey levels on flat ground and more in texture."""
        amplitude = np.minimum(min(gain, MAX_ON_FLAT) + gain * self.texture, MAX_AMPLITUDE)
        wave = synthesise(mark.amplitudes * (CELL_RADIUS / 0.1) ** np.float32(self.slope), *self.grey.shape)
        change = np.clip(wave, -CREST, CREST) * amplitude
        height, width = self.pixels.size
        if change.shape != (height, width):
            change = np.asarray(Image.fromarray(change).resize((width, height), Image.Resampling.BICUBIC))
        pixels = self.pixels.brightened(np.rint(change).astype(np.int16))
        image = resized(pixels.shown(), self.side)
        difference = pixels.colour.astype(np.int16) - self.pixels.colour
        return Marked(
            pixels=pixels,
            image=image,
            gain=gain,
            error=float(np.mean(np.square(difference, dtype=np.float32))),
            ssim=self.similarity.of(canonical(image, self.side)),
        )


class Mark:
    """The waves that spell one asset id under one key, and how strong each of them is."""

    def __init__(self, key: WatermarkKey, asset: bytes) -> None:
        self.key = key
        self.asset = asset
        self.signs = pattern(key).signs(encode(asset))
        self.weights = np.ones(NUM_CELLS, np.float32)

    @property
    def amplitudes(self) -> Complexes:
        """(cells,)."""
        return pattern(self.key).phase * self.signs * self.weights

    def strengthen(self, marked: Marked) -> None:
        """Shift strength to the bits that read worst after JPEG."""
        known = pattern(self.key)
        evidence = along_phase(cells_of(next(damages(marked.image))), self.key) * self.signs
        of_bits = known.sums(evidence) / CELLS_PER_BIT
        weights = self.weights.copy()
        weights[known.data] *= np.exp(of_bits.mean() - of_bits)[known.bit]
        weights = np.clip(weights, 1 / MAX_WEIGHT, MAX_WEIGHT)
        self.weights = weights / np.sqrt(np.mean(weights**2))

    def is_robust(self, marked: Marked) -> bool:
        """Whether the mark reads well, and still reads after worse than what publishing does to most pictures."""
        return self.reads(marked.image, STRONG_Z) and all(map(self.reads, damages(marked.image)))

    def is_readable(self, marked: Marked) -> bool:
        """Whether the mark reads, also after JPEG 75."""
        return self.reads(marked.image) and self.reads(compressed(marked.image, "JPEG", 75))

    def reads(self, image: Image.Image, min_z: float = MIN_Z_UNMOVED) -> bool:
        cells = cells_of(image)
        return float(fit_at(cells, self.key)) >= min_z and read_at(cells, self.key) == (self.asset, True)


def cells_of(image: Image.Image) -> Complexes:
    """A canonical picture -> (cells,), levelled."""
    return levelled(spectra(residual(canonical(image, max(image.size))), [1.0])[0])


def damages(image: Image.Image) -> Iterator[Image.Image]:
    """Copies of a canonical picture in which its mark should still read; JPEG first."""
    if max(image.size) < SMALL_SIDE:
        yield compressed(image, "JPEG", 75)
        return
    yield compressed(image, "JPEG", 50)
    yield compressed(image, "WEBP", 60)
    # Overexposed: a white ground, and what of the mark lies in it, is lost.
    yield image.point([min(255, round(1.3 * level)) for level in range(256)] * len(image.getbands()))


def compressed(image: Image.Image, kind: Literal["JPEG", "WEBP"], quality: int) -> Image.Image:
    """The image after a lossy format."""
    file = BytesIO()
    # WebP's fastest method: at quality 60 it damages a mark as its slowest does at 80.
    image.save(file, kind, quality=quality, **({"method": 0} if kind == "WEBP" else {}))
    return Image.open(file)
