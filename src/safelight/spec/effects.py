"""Whatever steers a picture beside its prompt: regions, LoRA, ControlNet, ...; as requested, and as pinned."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, WithJsonSchema, field_validator

from safelight.errors import InvalidField
from safelight.spec.fields import (
    Blur,
    Digest,
    Fit,
    Fraction,
    Frozen,
    ModelName,
    PictureDigest,
    Prompt,
    SourceDigest,
)
from safelight.spec.parts import Span, out_of_order

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
FACE_WIDTH, MAX_FACES = 512, 16
FaceEmbedding = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=FACE_WIDTH, max_length=FACE_WIDTH)
]
"""A face as ArcFace (arXiv:1801.07698) describes it. It tells one person from all others: personal data."""
Factor = Annotated[float, Field(ge=0, le=4, allow_inf_nan=False)]
MAX_EFFECTS = 20
EffectName = Annotated[str, Field(min_length=1, max_length=100)]
EffectValues = Annotated[
    dict[str, JsonValue], WithJsonSchema({"type": "object", "additionalProperties": True, "title": "Effect"})
]
PluginEffects = Annotated[dict[EffectName, EffectValues], Field(max_length=MAX_EFFECTS)]
"""Values of plugins' effects, by name; the plugin's own model checks them (`resolve/plugins.py`)."""


class FreeU(Frozen, use_attribute_docstrings=True):
    """FreeU (arXiv:2309.11497): factors of the UNet's backbone features (b), and of the low frequencies of its skip
    features (s).

    1 is the lowest level of the decoder, 2 the next one. The authors' values are 1.5, 1.6, .9, .2 for Stable Diffusion
    1, 1.4, 1.6, .9, .2 for 2, and 1.3, 1.4, .9, .2 for SDXL.
    """

    b1: Factor = 1.5
    """Backbone factor of the lowest level."""
    b2: Factor = 1.6
    """Backbone factor of the next level."""
    s1: Factor = 0.9
    """Skip factor of the lowest level."""
    s2: Factor = 0.2
    """Skip factor of the next level."""

    def level(self, number: int) -> tuple[float, float]:
        return ((self.b1, self.s1), (self.b2, self.s2))[number]


class Region(Frozen, use_attribute_docstrings=True):
    """A prompt for a part of the picture: a box, or where a mask is white."""

    prompt: Prompt
    """Prompt of the region."""
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """Left, top, right and bottom edge, as fractions of width and height: `[0, 0, 0.5, 1]` is the left half."""
    mask: PictureDigest | None = None
    """Mask in place of a box: the region is where this picture is white; grey mixes."""
    fit: Fit = "crop"
    """How the mask is brought to the size of the picture."""
    weight: Annotated[Fraction, Field(gt=0)] = 0.8
    """Share of the region's prompt inside of the region; the picture's own prompt has the rest. Where regions overlap
    and their shares exceed 1, they are scaled down to it."""
    blur: Blur = 0.0
    """Softness of the region's edge, as a standard deviation in pixels."""

    def clashes(self) -> Iterator[InvalidField]:
        if (self.box is None) == (self.mask is None):
            yield InvalidField("box", "give a box or a mask, and not both", "mask")
        if self.box is not None:
            left, top, right, bottom = self.box
            if left >= right or top >= bottom:
                why = f"left, top, right, bottom: {left:g} must be below {right:g}, and {top:g} below {bottom:g}"
                yield InvalidField("box", why)


MAX_REGIONS = 16


class LoraRequest(Frozen, use_attribute_docstrings=True):
    """A LoRA and how much of it. What it does to the text encoder is done to the whole prompt, once."""

    name: Annotated[str, Field(min_length=1, max_length=500)]
    """Name of the LoRA, or the path of its file."""
    digest: Digest | None = None
    """sha256 of its file; left out, what the name stands for now."""
    weight: LoraWeight = 1.0
    """Weight for the UNet, and for the text encoder unless `text_weight` is given."""
    text_weight: LoraWeight | None = None
    """Weight for the text encoder; left out, as `weight`."""
    blocks: dict[Block, LoraWeight] | None = None
    """Factors of the weight: `BASE` is the text encoder, `down`, `mid`, `up` and `IN04` are parts of the UNet, of which
    the finer goes first; 1 for what is not named. A list is read as sd-webui-lora-block-weight reads it."""
    start: Fraction = 0.0
    """Where it begins to act on the UNet, as a fraction of the steps."""
    end: Fraction = 1.0
    """Where it stops acting on the UNet, as a fraction of the steps."""

    @field_validator("blocks", mode="before")
    @classmethod
    def by_name(cls, blocks: Any) -> Any:
        if not isinstance(blocks, list | tuple):
            return blocks
        if len(blocks) not in BLOCKS:
            raise ValueError(f"a list of block weights has {', '.join(map(str, BLOCKS))} numbers, not {len(blocks)}")
        return dict(zip(BLOCKS[len(blocks)].split(), blocks, strict=True))

    def clashes(self) -> Iterator[InvalidField]:
        yield from out_of_order(self.start, self.end)


class PinnedLora(LoraRequest):
    """The same, pinned to the file it was drawn with."""

    digest: Digest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


HintKind = Literal["pose", "depth", "soft-edge", "hard-edge", "normal", "segmentation", "tile", "repaint"]
HINT_KINDS: tuple[HintKind, ...] = get_args(HintKind)
"""As ControlNet Union numbers them; the first six are all that its first edition has."""


class ControlRequest(Span):
    """A picture that sets the layout, and the network that reads it: a ControlNet or a T2I-Adapter."""

    model: ModelName
    """Name of the ControlNet or T2I-Adapter."""
    digest: Digest | None = None
    """sha256 of the network's files; left out, what the name stands for now."""
    image: SourceDigest
    """Picture from which the preprocessor makes the hint."""
    preprocessor: Annotated[str, Field(max_length=100)] = "none"
    """Preprocessor that makes the hint from the picture: `canny`, `soft-edge`, ...; `none`: the picture is a hint."""
    thresholds: tuple[Threshold, Threshold] | None = None
    """Thresholds of `canny`, low and high: the contrast at which a line continues, and at which it begins."""
    hint: PictureDigest | None = None
    """Hint that the network reads; left out, the preprocessor makes it."""
    hint_kind: HintKind | None = None
    """Kind of the hint, which a ControlNet Union needs; left out, the kind that the preprocessor makes."""
    fit: Fit = "crop"
    """How the picture is brought to `width` x `height`."""
    weight: ControlWeight = 1.0
    """Weight of the network."""
    mode: ControlMode = "balanced"
    """Control mode. `prompt`: the control acts less the finer a layer is; `control`: likewise, and it does not act on
    the unconditional row (the guess mode of ControlNet's authors)."""


class PinnedControl(ControlRequest):
    """The same, pinned to the network and to the hint that it was drawn with."""

    digest: Digest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    hint: PictureDigest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


class PicturePromptRequest(Span):
    """A picture, or a face, as a part of the prompt, through an IP-Adapter."""

    model: ModelName
    """Name of the IP-Adapter."""
    digest: Digest | None = None
    """sha256 of the adapter's file; left out, what the name stands for now."""
    image: PictureDigest | None = None
    """Picture that is part of the prompt. For a face model: an aligned face, square, 112 pixels wide or a multiple."""
    faces: Annotated[tuple[FaceEmbedding, ...], Field(max_length=MAX_FACES, repr=False)] = ()
    """Face embeddings for a FaceID adapter, 512 numbers each; several are seen at once. Left out, the face model makes
    one of the picture."""
    face_model: ModelName | None = None
    """Face model that makes the embedding of the picture for a FaceID adapter; left out, the only one there is."""
    face_model_digest: Digest | None = None
    """sha256 of the face model's file; left out, what the name stands for now."""
    shortcut: bool | None = None
    """Shortcut of FaceID Plus: whether the adapter is of version 2, whose files look alike; left out, whether its name
    has `plusv2`."""
    encoder: ModelName | None = None
    """Folder of the image encoder; left out, the one beside the adapter, or the only one there is."""
    encoder_digest: Digest | None = None
    """sha256 of the image encoder's files; left out, what the name stands for now."""
    weight: ControlWeight = 1.0
    """Weight of the adapter."""

    def clashes(self) -> Iterator[InvalidField]:
        yield from super().clashes()
        if self.image is None and not self.faces:
            yield InvalidField("image", "is needed; a FaceID adapter takes faces too", "faces")
        if self.faces and self.face_model is not None:
            yield InvalidField("face_model", "makes an embedding of the picture: leave it out, or faces", "faces")


class PinnedPicturePrompt(PicturePromptRequest):
    """The same, pinned to the files it was drawn with."""

    digest: Digest  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
