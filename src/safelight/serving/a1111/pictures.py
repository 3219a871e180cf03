"""Init pictures and masks of img2img, and AUTOMATIC1111's fill of masked parts."""

from PIL import Image, ImageFilter, ImageOps, ImageStat

from safelight.imaging.canvas import black_and_white, fit_to
from safelight.serving.a1111.img2img import ImageToImageBody
from safelight.studio import Studio

OPAQUE = (255, 255)
RADII = (256, 64, 16, 4)
"""Blur radii in pixels, from far to near."""


def store_init(data: bytes, mask: Image.Image | None, body: ImageToImageBody, studio: Studio) -> str:
    """Store an init picture, with its masked part filled if requested; returns its digest."""
    if mask is None or body.inpainting_fill != 0:
        return studio.keep(data)
    covered = ImageOps.invert(mask) if body.inpainting_mask_invert else mask
    return studio.keep(fill_from_surroundings(studio.open(data), covered), file=data)


def store_mask(data: bytes, studio: Studio) -> tuple[Image.Image, str]:
    """Store a mask; returns it and its digest."""
    mask = mask_from(data, studio)
    return mask, studio.keep(mask)


def mask_from(data: bytes, studio: Studio) -> Image.Image:
    """The mask of a picture: its white parts, or if it has transparency, its opaque ones."""
    image = studio.open(data, mode="RGBA")
    alpha = image.getchannel("A")
    return black_and_white(image.convert("L") if alpha.getextrema() == OPAQUE else alpha)


def fill_from_surroundings(image: Image.Image, covered: Image.Image) -> Image.Image:
    """Fill the covered part with a blur of its surroundings, finer towards its edge."""
    around = ImageOps.invert(fit_to(covered, *image.size, "stretch"))
    if around.getbbox() is None:
        return image
    average = tuple(round(value) for value in ImageStat.Stat(image, around).mean)
    filled = Image.new("RGBA", image.size, (*average, 255))
    visible = image.convert("RGBA")
    visible.putalpha(around)
    # Premultiplied: the covered part has no colour that a blur could spread.
    premultiplied = visible.convert("RGBa")
    for radius in RADII:
        filled.alpha_composite(premultiplied.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return Image.composite(image, filled.convert("RGB"), around)
