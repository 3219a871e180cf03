"""The options of a fine-tuning run: each field is a flag of `safelight train` and a key of its YAML file.

    LoraRecipe | DreamBoothRecipe | EmbeddingRecipe | FullRecipe, discriminated by `kind`

A recipe is complete: the YAML of `to_yaml` repeats the run. Imports no torch, so that `--help` is fast.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator

from safelight.errors import InvalidField, InvalidRequest, nearest
from safelight.spec.fields import Fraction
from safelight.validation import CheckedModel, refuse, without_tags

Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]{0,99}$")]
"""A valid file name on every system, and usable in a prompt."""

CHANGEABLE = {"steps", "save_every", "validate_every", "sample_every", "prompts", "tracker", "patience"}
"""Fields that may change when a run is resumed; changing any other makes it a different run."""


class Recipe(CheckedModel):
    """The fields of all four kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    name: Name
    """Name of the resulting LoRA, embedding or model."""
    data: str
    """A folder of pictures, a metadata.jsonl, a CSV or Parquet file, .tar shards, or a URL of any of these (s3://...)."""
    base: str = "mini"
    """The base model, by any name that `generate --model` takes."""
    steps: Count = 500
    """Number of weight updates."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 4
    """Pictures in one pass through the network, over all devices."""
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    """Passes whose gradients are accumulated for one update."""
    rate: Rate = 1e-4
    """Learning rate."""
    text_rate: Rate | None = None
    """Learning rate of the text encoder; default: `rate`."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up of the learning rates."""
    cooldown: Fraction = 0.0
    """Fraction of the run, at its end, over which the learning rates fall linearly to zero."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit stores its state in 8 bits; needs CUDA and the package bitsandbytes."""
    weight_decay: Fraction = 0.01
    """Weight decay of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all randomness, except the secret noise and sampling of a private run."""

    resolution: Annotated[int, Field(ge=64, le=4096)] | None = None
    """Pictures are resized to the area of a square with this side, in pixels; default: the model's own size."""
    buckets: bool = True
    """Sort pictures into buckets of similar aspect ratio; otherwise crop them to squares."""
    flip: bool = False
    """Mirror each picture half of the time."""
    mask: Literal["none", "file", "alpha"] = "none"
    """Train only where a mask is white: NAME.mask.png beside each picture, or the picture's alpha channel."""
    skip_bad: bool = False
    """Skip examples that cannot be trained on (damaged or tiny pictures, missing captions) instead of stopping."""
    min_side: Annotated[int, Field(ge=8)] = 64
    """Least length of a picture's shorter side, in pixels; smaller pictures are refused."""

    caption_dropout: Fraction = 0.0
    """Probability of training a picture without its caption, which classifier-free guidance needs."""
    shuffle_tags: bool = False
    """Shuffle comma-separated tags, anew each time."""
    keep_tokens: Annotated[int, Field(ge=0)] = 0
    """Number of tags at the front that are not shuffled."""
    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None
    """Layer of the text encoder to use, counted from its end; default: the model's own."""

    snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Gamma of min-SNR loss weights (arXiv:2303.09556), usually 5; default: all noise levels have equal weight."""
    offset_noise: Fraction = 0.0
    """Strength of noise constant over each channel, usually 0.05: lets the model learn dark and bright pictures."""

    cache_latents: bool = True
    """Encode every picture once, and cache the latents in the run's folder."""
    cache_text: bool = True
    """Encode every caption once, if the text encoder is not trained."""
    gradient_checkpointing: bool = False
    """Use less memory, but more time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on CUDA devices that support it, else float32."""

    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Fraction of the pictures held out for validation."""
    validate_every: Count = 50
    """Steps between validations on the held-out pictures."""
    patience: Count | None = None
    """Stop after this many validations without improvement, and use the best weights; needs `holdout`."""
    prompts: tuple[str, ...] = ()
    """Prompts to draw with fixed seeds during training, as a grid in the run's folder; may be given several times."""
    sample_every: Count = 100
    """Steps between these grids."""
    save_every: Count = 100
    """Steps between checkpoints."""
    tracker: Literal["tensorboard", "mlflow", "none"] = "tensorboard"
    """Where to log metrics: the run's folder, or an MLflow server (MLFLOW_TRACKING_URI)."""

    def clashes(self) -> Iterator[InvalidField]:
        if self.patience is not None and self.holdout == 0:
            yield InvalidField(
                "patience", "needs holdout, the fraction of pictures to validate on, such as 0.1", "holdout"
            )
        if self.keep_tokens and not self.shuffle_tags:
            yield InvalidField("keep_tokens", "needs shuffle_tags", "shuffle_tags")

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """YAML with every field, so that later changes of defaults have no effect."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


Layers = Literal["attention", "transformer", "all"]
"""Attention projections only; all layers of the attention blocks; also convolutions of the residual blocks."""
Train = Literal["unet", "text", "both"]


class PrivateRecipe(Recipe):
    """The fields of kinds that can be trained with differential privacy."""

    dp: bool = False
    """Train with differential privacy (DP-SGD): bounds what the result reveals of any picture, at a cost in quality."""
    dp_epsilon: Annotated[float, Field(gt=0, le=1000)] = 8.0
    """Privacy budget by the accountant rdp: below 1 is strong, 8 is usual, far above is little protection."""
    dp_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Probability that the guarantee fails; choose it well below one over the number of pictures."""
    dp_clip: Annotated[float, Field(ge=1e-9, le=1e9)] = 1.0
    """Clipping norm of each picture's gradient."""

    def clashes(self) -> Iterator[InvalidField]:
        yield from super().clashes()
        if self.dp and self.accumulate > 1:
            why = "differential privacy processes pictures one by one: use a larger batch instead"
            yield InvalidField("accumulate", why, "dp")


class LoraRecipe(PrivateRecipe):
    kind: Literal["lora"] = "lora"  # pyright: ignore[reportGeneralTypeIssues]
    rate: Rate = 1e-3
    """Learning rate."""
    train: Train = "unet"
    """Train the UNet, the text encoders, or both."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the matrices added to each layer: the LoRA's capacity."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is multiplied by alpha / rank; default: the rank."""
    layers: Layers = "transformer"
    """attention: attention projections; transformer: whole attention blocks; all: also convolutions."""


class DreamBoothRecipe(Recipe):
    kind: Literal["dreambooth"] = "dreambooth"  # pyright: ignore[reportGeneralTypeIssues]
    prompt: str
    """Prompt of all pictures, with a rare word for the subject: "a sks dog". It replaces captions."""
    class_prompt: str | None = None
    """Prompt of the subject's class, "a dog", for prior preservation with class pictures that the base model draws."""
    class_pictures: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Number of class pictures; they are cached for other runs."""
    prior_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Loss weight of the class pictures relative to the subject's."""
    rate: Rate = 1e-3
    """Learning rate; divided by 100 with `whole`."""
    train: Train = "unet"
    """Train the UNet, the text encoders, or both."""
    whole: bool = False
    """Train all weights and save a model instead of a LoRA."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the LoRA."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Alpha of the LoRA; default: the rank."""
    layers: Layers = "transformer"
    """Layers of the LoRA: attention, transformer, or all."""


class EmbeddingRecipe(PrivateRecipe):
    kind: Literal["embedding"] = "embedding"  # pyright: ignore[reportGeneralTypeIssues]
    rate: Rate = 5e-3
    """Learning rate."""
    weight_decay: Fraction = 0.0
    """Weight decay of AdamW."""
    vectors: Annotated[int, Field(ge=1, le=32)] = 1
    """Number of tokens of the new word."""
    init: str = "*"
    """Word whose embedding initialises the new one."""
    concept: Literal["object", "style"] = "object"
    """Templates to use around the new word: for an object or for a style."""
    use_captions: bool = False
    """Use the captions, which must contain the name, instead of templates."""


class FullRecipe(Recipe):
    kind: Literal["full"] = "full"  # pyright: ignore[reportGeneralTypeIssues]
    rate: Rate = 1e-5
    """Learning rate."""
    train: Train = "unet"
    """Train the UNet, the text encoders, or both."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the weights to save, usually 0.9999."""


AnyRecipe = LoraRecipe | DreamBoothRecipe | EmbeddingRecipe | FullRecipe
KINDS: dict[str, type[AnyRecipe]] = {
    "lora": LoraRecipe,
    "dreambooth": DreamBoothRecipe,
    "embedding": EmbeddingRecipe,
    "full": FullRecipe,
}
RecipeByKind = Annotated[Annotated[AnyRecipe, Field(discriminator="kind")], WrapValidator(without_tags)]
_RECIPE: TypeAdapter[AnyRecipe] = TypeAdapter(RecipeByKind, config=ConfigDict(defer_build=True))


def parse_recipe(values: Mapping[str, Any]) -> AnyRecipe:
    """Build the recipe of the kind named by `kind`.

    Raises:
        InvalidRequest: lists all errors by field.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidRequest(f"kind is one of {', '.join(KINDS)}, not {kind!r}{nearest(str(kind), list(KINDS))}")
    try:
        return _RECIPE.validate_python(values)
    except ValidationError as error:
        refuse(error)


def read_recipe(path: Path) -> dict[str, Any]:
    """The fields in a YAML file, unchecked.

    Raises:
        InvalidRequest: the file cannot be read, or is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequest(f"recipe {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"recipe {path} must hold fields like `steps: 500`")
    return {str(name): value for name, value in values.items()}


def changed_fields(before: AnyRecipe, now: AnyRecipe) -> list[str]:
    """The changed fields that make it a different run."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    # The noise of a private run was calibrated for its number of steps.
    changeable = CHANGEABLE - {"steps"} if isinstance(now, PrivateRecipe) and now.dp else CHANGEABLE
    return sorted(name for name in old.keys() | new.keys() if name not in changeable and old.get(name) != new.get(name))
