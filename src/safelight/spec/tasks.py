"""Specs: frozen and complete, one class for each task."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from safelight.spec.digest import digest_of
from safelight.spec.effects import (
    MAX_CONTROLS,
    MAX_LORAS,
    MAX_REGIONS,
    FreeU,
    PinnedControl,
    PinnedLora,
    PinnedPicturePrompt,
    PluginEffects,
    Region,
)
from safelight.spec.fields import (
    Blur,
    ClipSkip,
    Determinism,
    Digest,
    Fit,
    Fraction,
    Frozen,
    Guidance,
    ImageGuidance,
    Padding,
    PagLayers,
    PagScale,
    PictureDigest,
    Prompt,
    SagScale,
    Scale,
    Side,
    SpecSeed,
    Steps,
    Strength,
    UpscaleMethod,
)
from safelight.spec.parts import (
    GuidanceInterval,
    HighresFix,
    PinnedEmbedding,
    PinnedPart,
    PinnedPlugin,
    PinnedRefiner,
    Tiles,
)
from safelight.validation import refuse


class Picture(Frozen):
    """What every denoised picture has; the concrete specs below add what they start from."""

    model: str
    model_digest: Digest
    prompt: Prompt
    negative_prompt: Prompt
    seed: SpecSeed
    width: Side
    height: Side
    sampler: str
    steps: Steps
    guidance: Guidance
    guidance_rescale: Fraction
    guidance_interval: GuidanceInterval
    clip_skip: ClipSkip
    determinism: Determinism
    embeddings: tuple[PinnedEmbedding, ...] = ()
    loras: Annotated[tuple[PinnedLora, ...], Field(max_length=MAX_LORAS)] = ()
    controls: Annotated[tuple[PinnedControl, ...], Field(max_length=MAX_CONTROLS)] = ()
    picture_prompts: Annotated[tuple[PinnedPicturePrompt, ...], Field(max_length=MAX_CONTROLS)] = ()
    regions: Annotated[tuple[Region, ...], Field(max_length=MAX_REGIONS)] = ()
    freeu: FreeU | None = None
    pag_scale: PagScale = 0.0
    """Perturbed-attention guidance: how far away from a picture without structure; 0 is not at all, 3 is usual."""
    pag_layers: PagLayers = ("mid",)
    sag_scale: SagScale = 0.0
    """Self-attention guidance: how far away from a picture blurred where the network looks; 0.75 is usual."""
    vae: PinnedPart | None = None
    text_encoder: PinnedPart | None = None
    effects: PluginEffects = {}  # noqa: RUF012  pydantic copies it
    """Effects of plugins, with every field that the plugin gives them."""
    plugins: tuple[PinnedPlugin, ...] = ()
    """Those that the effects and the sampler came from."""

    def digest(self) -> str:
        return digest_of(self)


class TextToImage(Picture):
    task: Literal["text-to-image"] = "text-to-image"
    highres: HighresFix | None = None
    refiner: PinnedRefiner | None = None


class ImageToImage(Picture):
    task: Literal["image-to-image"] = "image-to-image"
    init: PictureDigest
    strength: Strength
    fit: Fit
    tiles: Tiles | None = None
    refiner: PinnedRefiner | None = None


class Inpaint(Picture):
    """White in the mask is drawn anew; `mask_invert` swaps that."""

    task: Literal["inpaint"] = "inpaint"
    init: PictureDigest
    mask: PictureDigest
    strength: Strength
    fit: Fit
    mask_blur: Blur
    """Standard deviation in pixels of the picture."""
    mask_invert: bool
    only_masked: bool
    """Draw only the box around the mask, at full width x height, and paste it back."""
    padding: Padding
    """Pixels of surroundings the box of `only_masked` takes in."""
    soft_mask: bool = False
    """Grey in the mask mixes, and what is black keeps its very pixels: the mask is laid on as it is, without blur."""
    refiner: PinnedRefiner | None = None


class Edit(Picture):
    """The prompt says what to change in a picture (InstructPix2Pix)."""

    task: Literal["edit"] = "edit"
    init: PictureDigest
    fit: Fit
    image_guidance: ImageGuidance
    strength: Strength = 1.0
    """1 begins with noise alone: the network sees the picture anyway."""


class Variation(Picture):
    """Another picture like one: the network is told what CLIP sees in it, and no words."""

    task: Literal["variation"] = "variation"
    init: PictureDigest


class Upscale(Frozen):
    task: Literal["upscale"] = "upscale"
    init: PictureDigest
    scale: Scale
    method: UpscaleMethod = "lanczos"
    method_digest: Digest | None = None
    """sha256 of the network's file, where it is one's own; names of bundled ones stand for the same everywhere."""
    plugins: tuple[PinnedPlugin, ...] = ()
    """The one that the method came from."""

    def digest(self) -> str:
        return digest_of(self)


Denoised = TextToImage | ImageToImage | Inpaint | Edit | Variation
"""The specs that a network draws."""
Refined = TextToImage | ImageToImage | Inpaint
"""Those whose end another model may draw."""
Spec = Annotated[Denoised | Upscale, Field(discriminator="task")]
_SPEC: TypeAdapter[Denoised | Upscale] = TypeAdapter(Spec, config=ConfigDict(defer_build=True))


def parse_spec(values: Mapping[str, Any]) -> Denoised | Upscale:
    """A spec from its JSON form."""
    try:
        return _SPEC.validate_python(values)
    except ValidationError as error:
        refuse(error)
