"""Similarity of generated pictures to artwork: of the same kind, but not copies.

    pictures, real artwork -> features -> kernel distance          (are they of one kind?)
                           -> nearest training picture of each      (is any a copy?)

Features are the image encoder's (`models/vision/similarity.py`), or any other vectors of pictures, and coarse pixels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.errors import InvalidRequest

Embed = Callable[[Sequence[Image.Image]], Tensor]
"""One vector per picture, (n, dim)."""
COARSE = 32
"""Side in pixels at which pictures are compared by pixels."""


@dataclass(frozen=True, slots=True)
class Artwork:
    """Real pictures over white, as `safelight train scratch artwork` renders them."""

    training: list[Image.Image]
    held_out: list[Image.Image]
    drawings: Mapping[str, Mapping[str, Image.Image]]
    """All pictures, by concept and style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtworkSimilarity:
    """Metrics of a set of generated pictures, with the same of real ones as reference."""

    distance: float
    """Kernel distance from generated to held-out real pictures."""
    real_distance: float
    """From training to held-out real pictures: about what a perfect model would have."""
    copies_by_features: float
    """Share of generated pictures nearer to a training picture than half of the held-out ones are."""
    copies_by_pixels: float


def read_artwork(folder: Path) -> Artwork:
    """Read the pictures in the artists' own colours.

    Raises:
        InvalidRequest: the folder has no artwork.
    """
    try:
        entries = json.loads((folder / "pictures.json").read_text("utf-8"))
        held = set(json.loads((folder / "holdout.json").read_text("utf-8")))
        stored = np.load(folder / "pictures.npy", mmap_mode="r")
    except OSError as error:
        raise InvalidRequest(
            f"{folder} lacks the drawings to compare with ({error.strerror}); "
            "`safelight train scratch artwork` downloads and draws them"
        ) from None
    rows = [row for row, picture in enumerate(entries) if picture["own_colour"]]
    pictures = {row: over_white(stored[row]) for row in rows}
    drawings: dict[str, dict[str, Image.Image]] = {}
    for row in rows:
        drawings.setdefault(entries[row]["concept"], {})[entries[row]["style"]] = pictures[row]
    return Artwork(
        training=[pictures[row] for row in rows if entries[row]["key"] not in held],
        held_out=[pictures[row] for row in rows if entries[row]["key"] in held],
        drawings=drawings,
    )


def over_white(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels), "RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def measure_similarity(pictures: Sequence[Image.Image], artwork: Artwork, embed: Embed) -> ArtworkSimilarity:
    drawn, training, held = (embed(part) for part in (pictures, artwork.training, artwork.held_out))
    coarse = [coarse_pixels(part) for part in (pictures, artwork.training, artwork.held_out)]
    return ArtworkSimilarity(
        distance=kernel_distance(drawn, held),
        real_distance=kernel_distance(training, held),
        copies_by_features=share_nearer(drawn, training, than=held),
        copies_by_pixels=share_nearer(coarse[0], coarse[1], than=coarse[2]),
    )


def kernel_distance(left: Tensor, right: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of (n, dim) and (m, dim), times 1000.

    The kernel is (x.y / dim + 1)^3 (arXiv:1801.01401). For two samples of one distribution it is about 0, and may be
    negative. Not comparable between different features.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x.double() @ y.double().T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        products = kernel(x, x)
        return (products.sum() - products.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(1000 * (within(left) + within(right) - 2 * kernel(left, right).mean()))


def share_nearer(pictures: Tensor, training: Tensor, *, than: Tensor) -> float:
    """Share of pictures (n, dim) nearer to their nearest training picture (m, dim) than half of `than` (k, dim)."""
    usual = torch.cdist(than, training).min(dim=1).values.median()
    return float((torch.cdist(pictures, training).min(dim=1).values < usual).double().mean())


def coarse_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """(b, 3 * 32 * 32) in 0..1."""
    small = [picture.convert("RGB").resize((COARSE, COARSE), Image.Resampling.BOX) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(image) for image in small])).flatten(1).float() / 255
