"""A picture's colour, transparency and brightness, from a Pillow image or an array and back in the same type."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safelight.errors import InvalidImage
from safelight.trust.watermark.pattern import Floats

Picture = TypeVar("Picture", Image.Image, NDArray[np.uint8])
Bytes = NDArray[np.uint8]
MODES = ("RGB", "RGBA", "L", "LA")


@dataclass(frozen=True, kw_only=True)
class Pixels:
    colour: Bytes
    """(h, w, 1) or (h, w, 3)."""
    alpha: Bytes | None = None
    """(h, w)."""

    @classmethod
    def of(cls, picture: Image.Image | Bytes) -> "Pixels":
        """Read an image of mode RGB, RGBA, L or LA, or a uint8 array (h, w), (h, w, 3) or (h, w, 4).

        Raises:
            InvalidImage: it is none of these.
        """
        if isinstance(picture, Image.Image):
            if picture.mode not in MODES:
                raise InvalidImage(
                    f"a picture of mode {picture.mode} cannot be marked; convert it to {', '.join(MODES)}"
                )
            picture = np.asarray(picture)
        array = picture[..., None] if picture.ndim == 2 else picture
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] > 4 or not array.size:
            raise InvalidImage(f"an array of {picture.dtype} {picture.shape} is no picture; uint8 (h, w, 3) is")
        has_alpha = array.shape[2] in (2, 4)
        return cls(colour=array[..., :-1], alpha=array[..., -1]) if has_alpha else cls(colour=array)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width, _ = self.colour.shape
        return height, width

    def brightened(self, change: NDArray[np.int16]) -> "Pixels":
        """Add a (h, w) change to all colours, within 0 and 255; what is quite transparent stays."""
        if self.alpha is not None:
            change = np.where(self.alpha > 0, change, np.int16(0))
        colour = np.clip(self.colour + change[..., None], 0, 255).astype(np.uint8)
        return Pixels(colour=colour, alpha=self.alpha)

    def shown(self) -> Image.Image:
        """What one sees over a white ground: a Pillow image of mode RGB or L."""
        _, _, channels = self.colour.shape
        image = Image.fromarray(self.colour[..., 0] if channels == 1 else self.colour)
        if self.alpha is None:
            return image
        white = Image.new(image.mode, image.size, "white")
        return Image.composite(image, white, Image.fromarray(self.alpha))

    def like(self, picture: Any) -> Any:
        """The picture that these are the pixels of, in the type of `picture`."""
        parts = [self.colour] if self.alpha is None else [self.colour, self.alpha[..., None]]
        array = np.concatenate(parts, axis=2)
        if not isinstance(picture, Image.Image):
            return array.reshape(picture.shape)
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array, picture.mode)
        image.info = dict(picture.info)
        return image


def resized(image: Image.Image, long_side: float) -> Image.Image:
    """The image with that long side, rounded to pixels."""
    scale = long_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def canonical(image: Image.Image, long_side: float) -> Floats:
    """Brightness (ITU-R BT.601) of an image of mode RGB or L, with that long side: (h, w) float32, 0 to 255."""
    return np.asarray(resized(image.convert("L"), long_side), np.float32)
