"""The types of single fields: bounds, units, and what a value means."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from safelight.spec.marks import Mark
from safelight.validation import CheckedModel

Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]
"""Length of one side of the image, in pixels."""
NUM_SEEDS = 2**32
"""torch's generator on the CPU heeds 32 bits of a seed: those that differ by so much draw the same picture."""


def heeded(seed: int) -> int:
    if seed >= NUM_SEEDS:
        raise PydanticCustomError(
            "seed_too_large",
            "at most {most}: only 32 bits of a seed are used, so this one would give the same picture as {same}",
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
PictureDigest = Annotated[Digest, Mark.PICTURE]
SourceDigest = Annotated[Digest, Mark.SOURCE]
Prompt = Annotated[str, Field(max_length=20_000), Mark.PROMPT]
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

ModelName = Annotated[str, Field(min_length=1, max_length=500)]
Switch = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]

Reads = Literal["words", "instructions", "picture"]
"""What a model is told. words: what to draw; instructions: what to change; picture: one to draw others like."""

Fit = Literal["crop", "stretch", "pad"]
"""How a picture of another shape becomes width x height."""
Determinism = Literal["fast", "strict"]
"""strict: the job runs in a fixed batch shape, so the same spec gives the same bytes on the same machine."""


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


class Frozen(CheckedModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
