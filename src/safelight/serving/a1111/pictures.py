"""The pictures that img2img starts from: AUTOMATIC1111's masks, and what a masked part is filled with."""

from PIL import Image, ImageFilter, ImageOps, ImageStat

from safelight.imaging.canvas import black_and_white, fit_to
from safelight.serving.a1111.payloads import ImageToImageBody
from safelight.studio import Studio

OPAQUE = (255, 255)
RADII = (256, 64, 16, 4)
"""In pixels, from far to near."""


def keep(data: bytes, marked: Image.Image | None, body: ImageToImageBody, studio: Studio) -> str:
    """Store a picture as drafts start from it; returns its digest."""
    if marked is None or body.inpainting_fill != 0:
        return studio.keep(data)
    covered = ImageOps.invert(marked) if body.inpainting_mask_invert else marked
    return studio.keep(fill_from_surroundings(studio.open(data), covered))


def keep_mask(data: bytes, studio: Studio) -> tuple[Image.Image, str]:
    """A mask, and its digest once it is stored."""
    marked = mask_from(data, studio)
    return marked, studio.keep(marked)


def mask_from(data: bytes, studio: Studio) -> Image.Image:
    """What is white, or of a picture with transparency, what is opaque."""
    image = studio.open(data, mode="RGBA")
    alpha = image.getchannel("A")
    return black_and_white(image.convert("L") if alpha.getextrema() == OPAQUE else alpha)


def fill_from_surroundings(image: Image.Image, covered: Image.Image) -> Image.Image:
    """What is covered becomes a blur of what is around it, finer towards its edge."""
    around = ImageOps.invert(fit_to(covered, *image.size, "stretch"))
    if around.getbbox() is None:
        return image
    average = tuple(round(value) for value in ImageStat.Stat(image, around).mean)
    filled = Image.new("RGBA", image.size, (*average, 255))
    seen = image.convert("RGBA")
    seen.putalpha(around)
    # Premultiplied: what is covered has no colour that a blur could carry outwards.
    weighed = seen.convert("RGBa")
    for radius in RADII:
        filled.alpha_composite(weighed.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return Image.composite(image, filled.convert("RGB"), around)
