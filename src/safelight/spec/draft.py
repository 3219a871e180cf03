"""What a caller may say of a picture."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from safelight.errors import InvalidField
from safelight.spec.effects import (
    MAX_CONTROLS,
    MAX_LORAS,
    MAX_REGIONS,
    ControlRequest,
    FreeU,
    LoraRequest,
    PicturePromptRequest,
    PluginEffects,
    Region,
)
from safelight.spec.fields import (
    Blur,
    ClipSkip,
    Determinism,
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
    PictureDigest,
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


class Draft(Frozen, use_attribute_docstrings=True):
    """One request, in our own words, before defaults. `init`, `mask` and `extend` decide the task.

    The one list of what a caller may request: the flags of `safelight generate`, the bodies of `/v1/jobs`, the extra
    fields of OpenAI's dialect and the arguments of the MCP tools come from these fields, their types and docstrings.
    """

    prompt: Prompt
    """Prompt: what to draw; `(word:1.2)` weighs a word."""
    negative_prompt: Prompt = ""
    """Negative prompt: what not to draw."""
    model: str = "mini"
    """Checkpoint: a name of the list of models, a path, or `org/name@revision` on the Hugging Face hub."""
    seed: Seed | None = None
    """Seed, below 2^32: the same seed gives the same picture; left out, a random one."""
    width: Side | None = None
    """Width in pixels, a multiple of 8; left out, the model's own."""
    height: Side | None = None
    """Height in pixels, a multiple of 8; left out, the model's own."""
    sampler: str | None = None
    """Sampler with its noise schedule, by its community name such as `DPM++ 2M Karras`."""
    steps: Steps | None = None
    """Sampling steps; more are slower and finer, to a point. 20 to 30 is usual."""
    guidance: Guidance | None = None
    """Classifier-free guidance scale (CFG), 0 to 100: how closely to follow the prompt. 1 and below turns it off, which
    is twice as fast."""
    guidance_rescale: Fraction | None = None
    """Guidance rescale (arXiv:2305.08891), 0 to 1: restores the contrast that high guidance washes out."""
    guidance_interval: GuidanceInterval = GuidanceInterval()
    """Guidance interval (arXiv:2404.07724): the part of the steps, as fractions, in which guidance acts."""
    clip_skip: ClipSkip | None = None
    """CLIP skip: 1 reads the prompt from the text encoder's last layer, 2 from the one before it."""
    determinism: Determinism = "fast"
    """Determinism. `strict` gives the same bytes each time on one machine, and draws one picture at a time."""
    loras: Annotated[tuple[LoraRequest, ...], Field(max_length=MAX_LORAS)] = ()
    """LoRAs, beside those that the prompt names in tags such as `<lora:name:0.8>`."""
    controls: Annotated[tuple[ControlRequest, ...], Field(max_length=MAX_CONTROLS)] = ()
    """ControlNets and T2I-Adapters: pictures that set the layout."""
    picture_prompts: Annotated[tuple[PicturePromptRequest, ...], Field(max_length=MAX_CONTROLS)] = ()
    """IP-Adapters: pictures that are part of the prompt."""
    regions: Annotated[tuple[Region, ...], Field(max_length=MAX_REGIONS)] = ()
    """Regional prompts: a prompt of its own for each box or mask, beside `prompt`, which is for the whole picture."""
    freeu: FreeU | None = None
    """FreeU (arXiv:2309.11497): scales the backbone and skip features of the UNet."""
    pag_scale: PagScale | None = None
    """Perturbed-attention guidance scale (PAG), usually 3: better structure, for half as much time again."""
    pag_layers: PagLayers = ("mid",)
    """Layers whose attention PAG perturbs: down, mid, up, or parts of these such as up_blocks.1.attentions.0."""
    sag_scale: SagScale | None = None
    """Self-attention guidance scale (SAG), usually 0.75: more detail, for half as much time again."""
    effects: PluginEffects = {}  # noqa: RUF012  pydantic copies it
    """Effects of installed plugins, by name, each with the fields that the plugin gives it."""
    vae: ModelName | None = None
    """VAE in place of the model's own: a name, a path, or a model that contains it."""
    text_encoder: ModelName | None = None
    """Text encoder (CLIP or T5) of the same width in place of the model's own: a name, a path, or a model that
    contains it."""
    refiner: ModelName | None = None
    """Refiner: a second model that finishes the picture, SDXL's refiner or any other with the same latents."""
    refiner_switch: Switch | None = None
    """Fraction of the noise schedule at which the refiner takes over; left out, 0.8."""
    highres: HighresFix | None = None
    """Highres fix: a second, larger pass over the result of the first."""
    init: PictureDigest | None = None
    """Init picture: the picture to start from."""
    strength: Strength | None = None
    """Denoising strength, above 0 and up to 1: how far the picture departs from `init`; 1 keeps nothing."""
    fit: Fit = "crop"
    """How `init` is brought to `width` x `height`."""
    scale: OrOwnSize | None = None
    """Size as a multiple of `init`'s, in place of width and height; 1 redraws it at its own size."""
    tiles: Tiles | None = None
    """Tiled diffusion (MultiDiffusion): redraws `init` larger than the model can draw at once."""
    image_guidance: ImageGuidance | None = None
    """Image guidance scale, 1 to 100: how closely a model that follows instructions keeps to `init`."""
    mask: PictureDigest | None = None
    """Mask: a picture; only the part of `init` under its white area is redrawn."""
    mask_blur: Blur = 4.0
    """Softness of the mask's edge: standard deviation of the blur, in pixels."""
    mask_invert: bool = False
    """Invert the mask: draw where it is black."""
    only_masked: bool = False
    """Draw only the box around the mask, at full size, and paste it back."""
    padding: Padding = 32
    """Pixels around the mask that `only_masked` includes."""
    soft_mask: bool = False
    """Soft mask: blend by the mask's grey values, without blur."""
    replace_background: bool = False
    """Replace the background of `init` and keep the subject's pixels. The background is the white area of `mask`, or
    without a mask the transparent area, or the area of uniform colour at the edges."""
    extend: Sides | None = None
    """Outpainting: pixels by which to extend the canvas of `init` on each side, multiples of 8."""

    def clashes(self) -> Iterator[InvalidField]:
        if self.init is None:
            for name in ("mask", "strength", "extend", "replace_background", "scale", "tiles"):
                if getattr(self, name) not in (None, False):
                    yield InvalidField(name, "needs an init picture", "init")
        elif self.highres is not None:
            yield InvalidField(
                "highres",
                "works only without an init picture: leave out init, or set a larger width and height",
                "init",
            )
        if self.mask is None and self.extend is None:
            for name in ("mask_invert", "only_masked", "soft_mask"):
                if getattr(self, name):
                    yield InvalidField(name, "needs a mask", "mask", "extend")
        for name in ("width", "height"):
            if self.scale is not None and getattr(self, name):
                yield InvalidField(name, "cannot be combined with scale, which sets the size: leave one out", "scale")
        if self.tiles is not None:
            for name in ("mask", "extend", "replace_background"):
                if getattr(self, name):
                    yield InvalidField(
                        name, "cannot be combined with tiles, which redraw the whole picture: leave one out", "tiles"
                    )
            if self.controls:
                yield InvalidField("controls", "cannot be combined with tiles: leave one out", "tiles")
        if self.pag_layers != ("mid",) and not self.pag_scale:
            yield InvalidField("pag_layers", "need perturbed attention: give a pag_scale too, such as 3", "pag_scale")
        if self.refiner is None and self.refiner_switch is not None:
            yield InvalidField("refiner_switch", "needs a refiner: name one", "refiner")
        if self.extend is not None:
            if self.mask is not None:
                yield InvalidField("extend", "makes its own mask: leave out mask", "mask")
            if self.replace_background:
                why = "cannot be combined with extend, which enlarges the picture: leave one out"
                yield InvalidField("replace_background", why, "extend")


def parse_draft(values: Mapping[str, Any]) -> Draft:
    """A draft from loose values; what is wrong is said by field, all at once."""
    try:
        return Draft.model_validate(values)
    except ValidationError as error:
        refuse(error)
