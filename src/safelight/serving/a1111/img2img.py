"""The body of /sdapi/v1/img2img, with its mask and the script SD upscale."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from safelight.errors import InvalidField, SafelightError, UnsupportedOption
from safelight.serving.a1111.body import FITS, RED_DOT
from safelight.serving.a1111.generation_body import GenerationBody
from safelight.serving.a1111.options import Options
from safelight.serving.a1111.sd_upscale import SD_UPSCALE
from safelight.spec.fields import Blur, ImageGuidance, Padding, Strength

PLACEHOLDER_ID = "0" * 64
"""Stands for a picture that is validated later."""


class ImageToImageBody(GenerationBody):
    init_images: Annotated[tuple[str, ...], Field(examples=[[RED_DOT]])] = ()
    """Base64, data URLs, or http(s) URLs of public addresses; one, or one for each picture of a batch."""
    resize_mode: Annotated[int, Field(ge=0, le=3)] = 0
    """0 stretches, 1 crops, 2 pads from the edges."""
    denoising_strength: Strength = 0.75
    image_cfg_scale: ImageGuidance = 1.5
    """Image guidance of models that follow instructions; other models ignore it."""
    mask: str = ""
    """White areas are redrawn; in a picture with transparency, opaque ones."""
    mask_blur: Blur | None = None
    mask_blur_x: Blur = 4
    mask_blur_y: Blur = 4
    mask_round: bool = True
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] = 0
    """Content that the masked part starts from: 0 its surroundings, 1 the picture itself."""
    inpaint_full_res: bool = True
    """Redraw only the box around the mask."""
    inpaint_full_res_padding: Padding = 0
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] = 0
    initial_noise_multiplier: float = 1
    include_init_images: bool = False

    @property
    def uses_sd_upscale(self) -> bool:
        return self.script_name.casefold() == SD_UPSCALE

    @property
    def blur(self) -> float:
        return self.mask_blur_x if self.mask_blur is None else self.mask_blur

    @property
    def placeholder_images(self) -> dict[str, Any]:
        return {"init": PLACEHOLDER_ID} | ({"mask": PLACEHOLDER_ID} if self.mask else {})

    def fields_without_sampler(self, options: Options) -> dict[str, Any]:
        fields = super().fields_without_sampler(options) | {"strength": self.denoising_strength}
        if self.resize_mode in FITS:
            fields["fit"] = FITS[self.resize_mode]
        if not self.mask:
            return fields
        return fields | {
            "mask_blur": self.blur,
            "mask_invert": bool(self.inpainting_mask_invert),
            "only_masked": self.inpaint_full_res,
            "padding": self.inpaint_full_res_padding,
        }

    def clashes(self) -> Iterator[SafelightError]:
        if not self.init_images:
            yield InvalidField("init_images", "at least one picture is required, in base64")
        if len(self.init_images) > self.batch_size:
            reason = f"{len(self.init_images)} are more than the batch_size of {self.batch_size}"
            yield InvalidField("init_images", reason, "batch_size")
        yield from super().clashes()
        if self.resize_mode not in FITS:
            yield UnsupportedOption("resize_mode", "3 (latent upscale) is not supported; 0, 1 and 2 are")
        if self.initial_noise_multiplier != 1:
            reason = f"{self.initial_noise_multiplier} is not supported, only 1"
            yield UnsupportedOption("initial_noise_multiplier", reason)
        if self.mask:
            yield from self.check_mask()
        if self.uses_sd_upscale:
            yield from self.check_sd_upscale()

    def check_mask(self) -> Iterator[SafelightError]:
        if self.inpainting_fill not in (0, 1):
            yield UnsupportedOption("inpainting_fill", "2 and 3 (latent) are not supported; 0 and 1 are")
        if self.mask_blur is None and self.mask_blur_x != self.mask_blur_y:
            yield UnsupportedOption("mask_blur_y", "the mask is blurred equally in both directions", "mask_blur_x")
        if not self.mask_round:
            yield UnsupportedOption("mask_round", "soft masks are not supported; leave it out")

    def check_sd_upscale(self) -> Iterator[SafelightError]:
        if self.mask:
            yield InvalidField(
                "mask", "SD upscale redraws the whole picture; leave out the mask or the script", "script_name"
            )
