"""Geometry of images and masks: fitting, cropping, extending and pasting back. Pillow in, Pillow out."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from safelight.errors import InvalidRequest
from safelight.spec import Inpaint, Sides
from safelight.spec.fields import Fit

Box = tuple[int, int, int, int]
"""left, top, right, bottom, in pixels; right and bottom are exclusive."""


def fit_to(image: Image.Image, width: int, height: int, fit: Fit) -> Image.Image:
    """Resize an image to width x height: stretch it, crop it, or pad it with the colours of its edges."""
    if image.size == (width, height):
        return image
    if fit == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    # The short side of a very long image stays at least 1 pixel.
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    inner = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (width - inner.width) // 2, (height - inner.height) // 2
    return grow(inner, left=left, top=top, right=width - inner.width - left, bottom=height - inner.height - top)


def grow(image: Image.Image, *, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Add pixels beyond the edges, each the colour of the nearest edge pixel."""
    pad = ((top, bottom), (left, right)) + ((0, 0),) * (len(image.getbands()) > 1)
    return Image.fromarray(np.pad(np.asarray(image), pad, mode="edge"))


def outpaint_canvas(image: Image.Image, sides: Sides, *, overlap: int = 8) -> tuple[Image.Image, Image.Image]:
    """Return the extended image and the mask of the new area, which overlaps the old image to hide the seam.

    Right and bottom grow by up to 7 more pixels, to multiples of 8: resizing would blur the old image.
    """
    if not any(sides.model_dump().values()):
        raise InvalidRequest("extend: every side is 0; give pixels for at least one side")
    left, top = sides.left, sides.top
    right = sides.right + -(image.width + left + sides.right) % 8
    bottom = sides.bottom + -(image.height + top + sides.bottom) % 8
    canvas = grow(image, left=left, top=top, right=right, bottom=bottom)
    box = (
        left + overlap * (left > 0),
        top + overlap * (top > 0),
        canvas.width - right - overlap * (right > 0),
        canvas.height - bottom - overlap * (bottom > 0),
    )
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, box)
    return canvas, mask


def binary_mask(mask: Image.Image, *, blur: float, invert: bool) -> tuple[Image.Image, Image.Image]:
    """Return the mask in black and white, and a blurred version for pasting the result back."""
    hard = black_and_white(mask)
    if invert:
        hard = ImageOps.invert(hard)
    if hard.getbbox() is None:
        raise InvalidRequest("mask is all black: make the area to draw white (or use mask_invert)")
    return hard, hard.filter(ImageFilter.GaussianBlur(blur)) if blur else hard


def inpaint_masks(mask: Image.Image, spec: Inpaint) -> tuple[Image.Image, Image.Image]:
    """Return the mask for drawing, and the soft mask for pasting the result over the original."""
    hard, soft = binary_mask(mask, blur=spec.mask_blur, invert=spec.mask_invert)
    return hard, (ImageOps.invert(mask) if spec.mask_invert else mask) if spec.soft_mask else soft


def painted_box(mask: Image.Image, spec: Inpaint, *, size: tuple[int, int]) -> Box:
    """Return the smallest box with every pixel of the finished picture that an inpainting may change.

    Args:
        size: width and height of the picture that it starts from.
    """
    mask = fit_to(mask.convert("L"), *size, "stretch")
    if not spec.only_masked:
        mask = fit_to(mask, spec.width, spec.height, spec.fit)
    _, soft = inpaint_masks(mask, spec)
    return soft.getbbox() or (0, 0, *mask.size)


def black_and_white(mask: Image.Image) -> Image.Image:
    return mask.convert("L").point([255 * (value >= 128) for value in range(256)])


def box_around(mask: Image.Image, *, padding: int, width: int, height: int) -> Box:
    """Return the smallest box in the image with the mask and its padding, in the aspect ratio of width x height.

    If the image is too small for that ratio, the box spans its whole side. The arithmetic, including rounding, is that
    of diffusers' `get_crop_region`.
    """
    bounds = mask.getbbox()
    assert bounds is not None, "binary_mask refuses empty masks"
    left, top = max(bounds[0] - padding, 0), max(bounds[1] - padding, 0)
    right, bottom = min(bounds[2] + padding, mask.width), min(bounds[3] + padding, mask.height)
    if (right - left) / (bottom - top) > width / height:
        top, bottom = widen(top, bottom, int((right - left) / (width / height)), mask.height)
    else:
        left, right = widen(left, right, int((bottom - top) * (width / height)), mask.width)
    return left, top, right, bottom


def widen(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """Grow an interval evenly to a length, pushed back inside 0..limit."""
    length = min(max(length, high - low), limit)
    low = min(max(low - (length - (high - low)) // 2, 0), limit - length)
    return low, low + length


def paste_back(original: Image.Image, drawn: Image.Image, soft_mask: Image.Image, box: Box | None) -> Image.Image:
    """Composite: pixels outside the mask stay exactly the original's; `box` is the drawn part of the original."""
    if box is None:
        return Image.composite(drawn, original, soft_mask)
    left, top, right, bottom = box
    result = original.copy()
    # "crop" undoes the "pad" that was used for a box of another aspect ratio.
    result.paste(fit_to(drawn, right - left, bottom - top, "crop"), (left, top))
    return Image.composite(result, original, soft_mask)


def upscale(image: Image.Image, scale: float) -> Image.Image:
    """Lanczos resampling: the baseline that every other upscaler is measured against."""
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
