"""A picture is a function of its spec: what callers may say (`Draft`), and what is then done (`Spec`).

    Draft   every field optional but the prompt; None means "choose for me"
    Spec    frozen and complete: TextToImage | ImageToImage | Inpaint | Edit | Variation | Upscale, told apart by `task`

`complete` turns the first into the second from a model's `Defaults`. Pictures enter a spec by the sha256 of
their stored file, so a spec is a few hundred bytes of JSON and `digest` names it for good.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from safelight.errors import InvalidField, UnsupportedOption
from safelight.validation import CheckedModel, refuse

Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]
"""Length of one side of the image, in pixels."""
NUM_SEEDS = 2**32
"""torch's generator on the CPU heeds 32 bits of a seed: those that differ by so much draw the same picture."""


def heeded(seed: int) -> int:
    if seed >= NUM_SEEDS:
        raise PydanticCustomError(
            "seed_too_large",
            "at most {most}: only 32 bits of a seed are heeded, so that this one draws the picture of {same}",
            {"most": NUM_SEEDS - 1, "same": seed % NUM_SEEDS},
        )
    return seed


Seed = Annotated[
    int,
    Field(ge=0),
    AfterValidator(heeded),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": NUM_SEEDS - 1}),
]
SpecSeed = Annotated[int, Field(ge=0, lt=2**64)]
"""Pictures of earlier versions have larger ones, and are drawn again as they were."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""sha256 of a stored file, in hex."""
Prompt = Annotated[str, Field(max_length=20_000)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Strength = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
"""How far the picture departs from the one it starts from: 1 keeps nothing."""
MAX_STEPS = 1000
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
"""Classifier-free guidance scale; 1 and below means one network row instead of two."""
PagScale = Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)]
PagLayers = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(min_length=1, max_length=20)
]
"""Where attention is perturbed: `mid`, `down`, `up`, or parts of these such as `up_blocks.1.attentions.0`."""
SagScale = Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)]
ImageGuidance = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]
"""How strictly an edit keeps to its picture: the second scale of models that follow instructions (arXiv:2211.09800)."""
ClipSkip = Annotated[int, Field(ge=1, le=12)]
"""AUTOMATIC1111's count: 1 reads the text encoder's last layer, 2 the one before."""
Blur = Annotated[float, Field(ge=0, le=256, allow_inf_nan=False)]
Padding = Annotated[int, Field(ge=0, le=1024)]
MAX_SCALE = 8
Scale = Annotated[float, Field(gt=1, le=MAX_SCALE, allow_inf_nan=False)]
OrOwnSize = Annotated[float, Field(ge=1, le=MAX_SCALE, allow_inf_nan=False)]
Margin = Annotated[int, Field(ge=0, le=2048, multiple_of=8)]

LoraWeight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Block = Annotated[str, Field(pattern=r"^(BASE|down|mid|up|IN\d\d|M00|OUT\d\d)$")]
"""A part of the UNet, in the words of the LoRA block weight extension."""
BLOCKS = {
    3: "down mid up",
    12: "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
    17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    20: f"BASE {' '.join(f'IN{i:02}' for i in range(9))} M00 {' '.join(f'OUT{i:02}' for i in range(9))}",
    26: f"BASE {' '.join(f'IN{i:02}' for i in range(12))} M00 {' '.join(f'OUT{i:02}' for i in range(12))}",
}
"""What a list of so many weights is for: 12 and 20 for SDXL, 17 and 26 for Stable Diffusion 1."""
MAX_LORAS = 50
ControlWeight = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
Threshold = Annotated[float, Field(ge=0, le=255, allow_inf_nan=False)]
ControlMode = Literal["balanced", "prompt", "control"]
"""Who is listened to more. prompt: control acts less the finer a layer is; control: as prompt, and it does not act on
what guidance leads away from (the guess mode of ControlNet's authors)."""
MAX_CONTROLS = 10
ModelName = Annotated[str, Field(min_length=1, max_length=500)]
Switch = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]

Reads = Literal["words", "instructions", "picture"]
"""What a model is told. words: what to draw; instructions: what to change; picture: one to draw others like."""

Fit = Literal["crop", "stretch", "pad"]
"""How a picture of another shape becomes width x height."""
Determinism = Literal["fast", "strict"]
"""strict: the job runs in a fixed batch shape, so the same spec gives the same bytes on the same machine."""


class Frozen(CheckedModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


LatentUpscaler = Literal[
    "latent", "latent-antialiased", "latent-bilinear", "latent-bilinear-antialiased", "latent-nearest",
    "latent-nearest-exact",
]  # fmt: skip
"""Latents resampled as they are; the first two are bicubic."""
BundledUpscaler = Literal["realesrgan-x4plus", "realesrgan-x4plus-anime", "realesr-animevideov3"]
"""Networks that come with the extra `upscale`."""
HighresUpscaler = Literal[LatentUpscaler, "lanczos", BundledUpscaler]
UpscaleMethod = Annotated[str, Field(min_length=1, max_length=200)]
"""`lanczos`, a bundled network, or the name of one's own; `models/vision/upscalers.py`."""


class Tiles(Frozen):
    """Draw a picture larger than the model can, in squares that overlap and are drawn together (arXiv:2302.08113)."""

    side: Side | None = None
    """In pixels; None takes what the model draws best."""
    overlap: Margin = 32
    """Pixels that neighbours share, and over which they fade into one another."""
    upscaler: Literal["lanczos", BundledUpscaler] = "lanczos"
    """What enlarges the picture before it is drawn over."""


class HighresFix(Frozen):
    """A second, larger pass over the first pass's result."""

    scale: Scale = 2.0
    strength: Strength = 0.6
    steps: Steps | None = None
    """None: as many as the first pass."""
    upscaler: HighresUpscaler = "lanczos"


def out_of_order(start: float, end: float) -> Iterator[InvalidField]:
    if start >= end:
        yield InvalidField("start", f"{start} must be below end {end}", "end")


class GuidanceInterval(Frozen):
    """The part of the walk, as fractions of its steps, in which guidance acts (arXiv:2404.07724)."""

    start: Fraction = 0.0
    end: Fraction = 1.0

    def clashes(self) -> Iterator[InvalidField]:
        yield from out_of_order(self.start, self.end)


class Sides(Frozen):
    """Pixels added beyond each edge of a picture."""

    left: Margin = 0
    top: Margin = 0
    right: Margin = 0
    bottom: Margin = 0


Factor = Annotated[float, Field(ge=0, le=4, allow_inf_nan=False)]


class FreeU(Frozen):
    """How much of what a UNet has made so far (b), and of the low frequencies of what its encoder hands over (s).

    1 is the lowest level on the way up, 2 the next one. The authors' values are 1.5, 1.6, .9, .2 for Stable Diffusion
    1, 1.4, 1.6, .9, .2 for 2, and 1.3, 1.4, .9, .2 for SDXL.
    """

    b1: Factor = 1.5
    b2: Factor = 1.6
    s1: Factor = 0.9
    s2: Factor = 0.2

    def level(self, number: int) -> tuple[float, float]:
        return ((self.b1, self.s1), (self.b2, self.s2))[number]


class PinnedEmbedding(Frozen):
    """A textual inversion that the prompt names, and the sha256 of the file that this name stood for."""

    name: str
    digest: Digest


PartName = Literal["vae", "text_encoder"]
"""What may stand in for a model's own."""


class PinnedPart(Frozen):
    """A part that stands in for the model's own, and the sha256 of what this name stood for."""

    name: str
    digest: Digest


class LoraRequest(Frozen):
    """A LoRA and how much of it. What it does to the text encoder is done to the whole prompt, once."""

    name: Annotated[str, Field(min_length=1, max_length=500)]
    digest: Digest | None = None
    """sha256 of its file; None takes what the name stands for now."""
    weight: LoraWeight = 1.0
    text_weight: LoraWeight | None = None
    """For the text encoder; None: as `weight`."""
    blocks: dict[Block, LoraWeight] | None = None
    """Factors of the weight: `BASE` is the text encoder, `down`, `mid`, `up` and `IN04` are parts of the UNet, of which
    the finer goes first; 1 for what is not named. A list is read as sd-webui-lora-block-weight reads it."""
    start: Fraction = 0.0
    end: Fraction = 1.0
    """The part of the walk, as fractions of its steps, in which it acts on the UNet."""

    @field_validator("blocks", mode="before")
    @classmethod
    def by_name(cls, blocks: Any) -> Any:
        if not isinstance(blocks, list | tuple):
            return blocks
        if len(blocks) not in BLOCKS:
            raise ValueError(f"a list has {', '.join(map(str, BLOCKS))} numbers, not {len(blocks)}")
        return dict(zip(BLOCKS[len(blocks)].split(), blocks, strict=True))

    def clashes(self) -> Iterator[InvalidField]:
        yield from out_of_order(self.start, self.end)


class PinnedLora(LoraRequest):
    """The same, pinned to the file it was drawn with."""

    digest: Digest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


class Span(Frozen):
    """The part of the walk, as fractions of its steps, in which something acts: on the steps that lie wholly inside."""

    start: Fraction = 0.0
    end: Fraction = 1.0

    def clashes(self) -> Iterator[InvalidField]:
        yield from out_of_order(self.start, self.end)

    def holds(self, step: int, steps: int) -> bool:
        """Whether it acts in this one of so many steps, counted from 0."""
        return self.start <= step / steps and (step + 1) / steps <= self.end


HintKind = Literal["pose", "depth", "soft-edge", "hard-edge", "normal", "segmentation", "tile", "repaint"]
HINT_KINDS: tuple[HintKind, ...] = get_args(HintKind)
"""As ControlNet Union numbers them; the first six are all that its first edition has."""


class ControlRequest(Span):
    """A picture that says what goes where, and the network that reads it: a ControlNet or a T2I-Adapter."""

    model: ModelName
    digest: Digest | None = None
    """Of the network's files; None takes what the name stands for now."""
    image: Digest
    preprocessor: Annotated[str, Field(max_length=100)] = "none"
    """What makes the hint out of the picture: `canny`, `soft-edge`, ...; `none`: the picture is one already."""
    thresholds: tuple[Threshold, Threshold] | None = None
    """Of `canny`: from how much contrast a line goes on, and from how much it begins."""
    hint: Digest | None = None
    """What the network is shown; None has the preprocessor make it."""
    hint_kind: HintKind | None = None
    """What the hint shows, for a ControlNet Union, which must be told; None: what the preprocessor makes."""
    fit: Fit = "crop"
    weight: ControlWeight = 1.0
    mode: ControlMode = "balanced"


class PinnedControl(ControlRequest):
    """The same, pinned to the network and to the hint that it was drawn with."""

    digest: Digest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    hint: Digest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


class PicturePromptRequest(Span):
    """A picture as a part of the prompt, through an IP-Adapter."""

    model: ModelName
    digest: Digest | None = None
    image: Digest
    encoder: ModelName | None = None
    """The folder of the image encoder; None: the one beside the adapter, or the only one there is."""
    encoder_digest: Digest | None = None
    weight: ControlWeight = 1.0


class PinnedPicturePrompt(PicturePromptRequest):
    """The same, pinned to the files it was drawn with."""

    digest: Digest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    encoder: ModelName  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    encoder_digest: Digest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


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
    freeu: FreeU | None = None
    pag_scale: PagScale = 0.0
    """Perturbed-attention guidance: how far away from a picture without structure; 0 is not at all, 3 is usual."""
    pag_layers: PagLayers = ("mid",)
    sag_scale: SagScale = 0.0
    """Self-attention guidance: how far away from a picture blurred where the network looks; 0.75 is usual."""
    vae: PinnedPart | None = None
    text_encoder: PinnedPart | None = None

    def digest(self) -> str:
        return digest_of(self)


class PinnedRefiner(Frozen):
    """Another model that draws the rest of the walk, pinned to its weights."""

    model: ModelName
    digest: Digest
    switch: Switch = 0.8
    """From this share of the noise levels on."""


class TextToImage(Picture):
    task: Literal["text-to-image"] = "text-to-image"
    highres: HighresFix | None = None
    refiner: PinnedRefiner | None = None


class ImageToImage(Picture):
    task: Literal["image-to-image"] = "image-to-image"
    init: Digest
    strength: Strength
    fit: Fit
    tiles: Tiles | None = None
    refiner: PinnedRefiner | None = None


class Inpaint(Picture):
    """White in the mask is drawn anew; `mask_invert` swaps that."""

    task: Literal["inpaint"] = "inpaint"
    init: Digest
    mask: Digest
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
    init: Digest
    fit: Fit
    image_guidance: ImageGuidance
    strength: Strength = 1.0
    """1 begins with noise alone: the network sees the picture anyway."""


class Variation(Picture):
    """Another picture like one: the network is told what CLIP sees in it, and no words."""

    task: Literal["variation"] = "variation"
    init: Digest


class Upscale(Frozen):
    task: Literal["upscale"] = "upscale"
    init: Digest
    scale: Scale
    method: UpscaleMethod = "lanczos"
    method_digest: Digest | None = None
    """sha256 of the network's file, where it is one's own; names of bundled ones stand for the same everywhere."""

    def digest(self) -> str:
        return digest_of(self)


Denoised = TextToImage | ImageToImage | Inpaint | Edit | Variation
"""The specs that a network draws."""
Refined = TextToImage | ImageToImage | Inpaint
"""Those whose end another model may draw."""
Spec = Annotated[Denoised | Upscale, Field(discriminator="task")]
_SPEC: TypeAdapter[Denoised | Upscale] = TypeAdapter(Spec)


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


class Defaults(Frozen):
    """What a model draws best with, where the caller does not choose."""

    width: Side
    height: Side
    sampler: str = "DPM++ 2M Karras"
    steps: Steps = 25
    guidance: Guidance = 7.0
    guidance_rescale: Fraction = 0.0
    clip_skip: ClipSkip = 1
    strength: Strength = 0.75
    image_guidance: ImageGuidance = 1.5


def complete(
    draft: Draft,
    defaults: Defaults,
    *,
    model_digest: str,
    embeddings: tuple[PinnedEmbedding, ...] = (),
    parts: Mapping[PartName, PinnedPart] | None = None,
    refiner: PinnedRefiner | None = None,
    random_seed: int | None = None,
    reads: Reads = "words",
) -> Denoised:
    """Fill in what the caller left open; an init picture makes it image-to-image, a mask inpainting.

    Raises:
        UnsupportedOption: what a model that reads instructions or pictures cannot be asked for.
    """
    if draft.extend is not None or draft.replace_background:
        raise ValueError("the canvas must be drawn into init and mask first")
    require_readable(draft, reads)
    elsewhere = {"extend", "highres", "replace_background", "scale", "tiles", "refiner", "refiner_switch"}
    chosen = draft.model_dump(exclude_none=True, exclude=elsewhere)
    filled = defaults.model_dump() | {"seed": choose_seed() if random_seed is None else random_seed} | chosen
    filled |= {"model_digest": model_digest, "embeddings": embeddings, "refiner": refiner} | dict(parts or {})
    if reads == "instructions":
        return Edit(**only_fields(Edit, filled | {"strength": draft.strength or 1.0}))
    if reads == "picture":
        return Variation(**only_fields(Variation, filled))
    if draft.init is None:
        return TextToImage(**only_fields(TextToImage, filled), highres=draft.highres)
    if draft.mask is not None:
        return Inpaint(**only_fields(Inpaint, filled))
    tiles = draft.tiles
    if tiles is not None and tiles.side is None:
        tiles = tiles.model_copy(update={"side": min(defaults.width, defaults.height)})
    return ImageToImage(**only_fields(ImageToImage, filled), tiles=tiles)


PICTURE_UNREAD = ("refiner", "mask", "tiles", "strength", "image_guidance", "prompt", "negative_prompt")


def require_readable(draft: Draft, reads: Reads) -> None:
    """Whether a model that is told this can be asked for that."""
    if reads == "words":
        if draft.image_guidance is not None:
            raise UnsupportedOption("image_guidance", f"{draft.model} follows no instructions; leave it out")
        return
    does = {
        "instructions": "changes a picture as the prompt says",
        "picture": "draws variations of a picture",
    }[reads]
    if draft.init is None:
        raise UnsupportedOption("model", f"{draft.model} {does}: give it an init picture")
    unread = {"instructions": ("refiner", "mask", "tiles"), "picture": PICTURE_UNREAD}
    for name in unread[reads]:
        if getattr(draft, name):
            raise UnsupportedOption(name, f"{draft.model} {does}; leave it out")


def only_fields(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in kind.model_fields}


def choose_seed() -> int:
    return secrets.randbelow(NUM_SEEDS)


def seeds_from(first: int, n: int) -> list[int]:
    """`n` seeds that follow each other; after the largest comes 0."""
    return [(first + i) % NUM_SEEDS for i in range(n)]


def digest_of(value: BaseModel) -> str:
    """sha256 of the canonical JSON: sorted keys, no spaces, UTF-8.

    A field at its default is left out, so that a field added later, whose default is what was done before, leaves old
    digests valid. A default in a spec therefore never changes.
    """
    values = value.model_dump(mode="json", exclude_defaults=True) | value.model_dump(include={"task"})
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_spec(values: Mapping[str, Any]) -> Denoised | Upscale:
    """A spec from its JSON form."""
    try:
        return _SPEC.validate_python(values)
    except ValidationError as error:
        refuse(error)


def parse_draft(values: Mapping[str, Any]) -> Draft:
    """A draft from loose values; what is wrong is said by field, all at once."""
    try:
        return Draft.model_validate(values)
    except ValidationError as error:
        refuse(error)
