"""How near generated pictures are to real ones: near enough to be of their kind, and not so near as to be copies.

    pictures, real artwork -> features -> kernel distance          (are they of one kind?)
                           -> nearest training picture of each      (is any a copy?)

Features are the image encoder's (`models/vision/similarity.py`), or whatever else maps pictures to vectors, and coarse
pixels.
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
"""A vector for each picture."""
COARSE = 32
"""Side in pixels at which pictures are compared as they are."""


@dataclass(frozen=True, slots=True)
class Artwork:
    """Real pictures over white, as `safelight train scratch artwork` renders them."""

    training: list[Image.Image]
    held_out: list[Image.Image]
    drawings: Mapping[str, Mapping[str, Image.Image]]
    """Both kinds, by concept and style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtworkSimilarity:
    """Numbers of a set of generated pictures beside the same numbers of held-out real ones."""

    distance: float
    """Kernel distance from generated to held-out real pictures."""
    real_distance: float
    """From training to held-out real pictures: what a perfect model would have, up to its sign."""
    copies_by_features: float
    """The share of generated pictures that are nearer to a training picture than half of the held-out ones are."""
    copies_by_pixels: float


def read_artwork(folder: Path) -> Artwork:
    """The pictures in the artists' own colours.

    Raises:
        InvalidRequest: the folder holds no artwork.
    """
    try:
        about = json.loads((folder / "pictures.json").read_text("utf-8"))
        held = set(json.loads((folder / "holdout.json").read_text("utf-8")))
        stored = np.load(folder / "pictures.npy", mmap_mode="r")
    except OSError as error:
        raise InvalidRequest(
            f"{folder} holds no artwork ({error.strerror}); `safelight train scratch artwork` makes it"
        ) from None
    rows = [row for row, picture in enumerate(about) if picture["own_colour"]]
    pictures = {row: over_white(stored[row]) for row in rows}
    drawings: dict[str, dict[str, Image.Image]] = {}
    for row in rows:
        drawings.setdefault(about[row]["concept"], {})[about[row]["style"]] = pictures[row]
    return Artwork(
        training=[pictures[row] for row in rows if about[row]["key"] not in held],
        held_out=[pictures[row] for row in rows if about[row]["key"] in held],
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
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (arXiv:1801.01401), times 1000.

    Of two samples of one distribution it is about 0, and may be below. Not comparable to numbers on other features.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x.double() @ y.double().T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        products = kernel(x, x)
        return (products.sum() - products.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(1000 * (within(left) + within(right) - 2 * kernel(left, right).mean()))


def share_nearer(pictures: Tensor, training: Tensor, *, than: Tensor) -> float:
    """The share of pictures whose nearest training picture is nearer than the median one of the pictures in `than`."""
    usual = torch.cdist(than, training).min(dim=1).values.median()
    return float((torch.cdist(pictures, training).min(dim=1).values < usual).double().mean())


def coarse_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """(b, 3 * 32 * 32) in 0..1."""
    small = [picture.convert("RGB").resize((COARSE, COARSE), Image.Resampling.BOX) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(image) for image in small])).flatten(1).float() / 255
