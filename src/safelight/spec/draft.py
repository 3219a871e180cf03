"""What a caller may say of a picture."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from safelight.errors import InvalidField
from safelight.spec.effects import MAX_CONTROLS, MAX_LORAS, ControlRequest, FreeU, LoraRequest, PicturePromptRequest
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
    ModelName,
    OrOwnSize,
    Padding,
    PagLayers,
    PagScale,
    Prompt,
    SagScale,
    Seed,
    Side,
    Steps,
    Strength,
    Switch,
)
from safelight.spec.parts import GuidanceInterval, HighresFix, Sides, Tiles
from safelight.validation import refuse


class Draft(Frozen):
    """One request, in our own words, before defaults. `init`, `mask` and `extend` decide the task."""

    prompt: Prompt
    negative_prompt: Prompt = ""
    model: str = "mini"
    seed: Seed | None = None
    width: Side | None = None
    height: Side | None = None
    sampler: str | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    guidance_rescale: Fraction | None = None
    guidance_interval: GuidanceInterval = GuidanceInterval()
    clip_skip: ClipSkip | None = None
    determinism: Determinism = "fast"
    loras: Annotated[tuple[LoraRequest, ...], Field(max_length=MAX_LORAS)] = ()
    """Beside those that the prompt names in tags, as in `<lora:name:0.8>`."""
    controls: Annotated[tuple[ControlRequest, ...], Field(max_length=MAX_CONTROLS)] = ()
    picture_prompts: Annotated[tuple[PicturePromptRequest, ...], Field(max_length=MAX_CONTROLS)] = ()
    freeu: FreeU | None = None
    pag_scale: PagScale | None = None
    """Perturbed-attention guidance, 3 say: more structure for another row in every call of the network."""
    pag_layers: PagLayers = ("mid",)
    sag_scale: SagScale | None = None
    """Self-attention guidance, 0.75 say: more detail for another call of the network after each."""
    vae: ModelName | None = None
    """Another autoencoder than the model's own: a name, a path, or a model whose autoencoder it is."""
    text_encoder: ModelName | None = None
    """Another text encoder, likewise."""
    refiner: ModelName | None = None
    """A model that takes over before the end: SDXL's refiner, or any other of the same latents."""
    refiner_switch: Switch | None = None
    """When it does, as a share of the noise levels; 0.8 if nothing else is said."""
    highres: HighresFix | None = None
    init: Digest | None = None
    strength: Strength | None = None
    fit: Fit = "crop"
    scale: OrOwnSize | None = None
    """So many times as large as `init`, in place of width and height; 1 draws it over at its own size."""
    tiles: Tiles | None = None
    image_guidance: ImageGuidance | None = None
    """Only for models that follow instructions."""
    mask: Digest | None = None
    mask_blur: Blur = 4.0
    mask_invert: bool = False
    only_masked: bool = False
    padding: Padding = 32
    soft_mask: bool = False
    """The mask is laid on as it is, without blur: grey mixes."""
    replace_background: bool = False
    """Keep the subject of `init` to the pixel and draw what is behind it: where the mask is white, or without one where
    the picture is transparent or of the even colour of its edges."""
    extend: Sides | None = None
    """Outpainting: grow the canvas of `init` and draw what is new."""

    def clashes(self) -> Iterator[InvalidField]:
        if self.init is None:
            for name in ("mask", "strength", "extend", "replace_background", "scale", "tiles"):
                if getattr(self, name) not in (None, False):
                    yield InvalidField(name, "needs an init picture", "init")
        elif self.highres is not None:
            yield InvalidField("highres", "starts from text alone: leave out init, or draw at the larger size", "init")
        if self.mask is None and self.extend is None:
            for name in ("mask_invert", "only_masked", "soft_mask"):
                if getattr(self, name):
                    yield InvalidField(name, "needs a mask", "mask", "extend")
        for name in ("width", "height"):
            if self.scale is not None and getattr(self, name):
                yield InvalidField(name, "scale takes the place of width and height: give one or the other", "scale")
        if self.tiles is not None:
            for name in ("mask", "extend", "replace_background"):
                if getattr(self, name):
                    yield InvalidField(name, "tiles draw a whole picture over: give one or the other", "tiles")
            if self.controls:
                yield InvalidField("controls", "tiles are not led by controls: give one or the other", "tiles")
        if self.pag_layers != ("mid",) and not self.pag_scale:
            yield InvalidField("pag_layers", "are of perturbed attention: give a pag_scale too, such as 3", "pag_scale")
        if self.refiner is None and self.refiner_switch is not None:
            yield InvalidField("refiner_switch", "is of a refiner: name one", "refiner")
        if self.extend is not None:
            if self.mask is not None:
                yield InvalidField("extend", "makes its own mask: give one or the other", "mask")
            if self.replace_background:
                why = "keeps the picture's size, and extend makes it grow: give one or the other"
                yield InvalidField("replace_background", why, "extend")


def parse_draft(values: Mapping[str, Any]) -> Draft:
    """A draft from loose values; what is wrong is said by field, all at once."""
    try:
        return Draft.model_validate(values)
    except ValidationError as error:
        refuse(error)
