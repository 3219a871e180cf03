"""What may be said of a fine-tuning run: each field is a flag of `safelight train` and a key of its YAML.

    LoraRecipe | DreamBoothRecipe | EmbeddingRecipe | FullRecipe, told apart by `kind`

A recipe is complete: written down by `to_yaml`, it repeats the run. Imports no torch, so that `--help` stays quick.
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
from safelight.validation import CheckedModel, refuse, untagged

Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]{0,99}$")]
"""What a file may be called on every system, and a prompt can say."""

CHANGEABLE = {"steps", "save_every", "validate_every", "sample_every", "prompts", "tracker", "patience"}
"""What may be said anew when a run is taken up again; the rest would make it another run."""


class Recipe(CheckedModel):
    """What all four kinds have."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Name
    """What the result is called: a LoRA, an embedding, or a model of that name."""
    data: str
    """A folder of pictures, a metadata.jsonl, a CSV or Parquet file, .tar shards, or such a place by URL (s3://...)."""
    base: str = "mini"
    """The model to begin with, by any name that `generate --model` takes."""
    steps: Count = 500
    """Updates of the weights."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 4
    """Pictures in one pass through the network, all devices together."""
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    """Passes whose gradients are added up before one update."""
    rate: Rate = 1e-4
    """Learning rate."""
    text_rate: Rate | None = None
    """Learning rate of the text encoder; left out: as `rate`."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rates rise from zero."""
    cooldown: Fraction = 0.0
    """Share of the run, at its end, over which the rates fall to zero."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps its memory in 8 bits: CUDA and the package bitsandbytes only."""
    weight_decay: Fraction = 0.01
    """AdamW's."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longer gradients are shortened to this."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """All randomness of a run follows from it, but that of a private one, which is secret."""

    resolution: Annotated[int, Field(ge=64, le=4096)] | None = None
    """Side in pixels of the square whose area pictures are brought to; left out: what the model was made for."""
    buckets: bool = True
    """Keep the pictures' proportions, as far as sides of a step allow; otherwise cut out their middle."""
    flip: bool = False
    """Show each picture mirrored, too, half of the time."""
    mask: Literal["none", "file", "alpha"] = "none"
    """Learn only where a mask is white: NAME.mask.png beside each picture, or the picture's own opacity."""
    skip_bad: bool = False
    """Leave out what cannot be learnt from (damaged or tiny pictures, missing captions) instead of stopping."""
    min_side: Annotated[int, Field(ge=8)] = 64
    """Pictures with a shorter side are too small."""

    caption_dropout: Fraction = 0.0
    """How often a picture is shown without its caption, which is what guidance lives on."""
    shuffle_tags: bool = False
    """Shuffle what stands between commas, anew each time."""
    keep_tokens: Annotated[int, Field(ge=0)] = 0
    """So many tags keep their place at the front."""
    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None
    """Which layer of the text encoder is read, counted from its end; left out: as the model draws."""

    snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """min-SNR weights (arXiv:2303.09556), usually 5; left out: all noise levels count alike."""
    offset_noise: Fraction = 0.0
    """Noise that is the same all over a channel, usually 0.05: lets the model learn dark and bright pictures."""

    cache_latents: bool = True
    """Send every picture through the autoencoder once, and keep the result in the run's folder."""
    cache_text: bool = True
    """Encode every caption once, where the text encoder is not trained."""
    gradient_checkpointing: bool = False
    """Less memory for more time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on devices that compute it fast, float32 elsewhere."""

    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the pictures that is kept aside, to measure what was learnt and not memorised."""
    validate_every: Count = 50
    """Steps between measurements on the pictures kept aside."""
    patience: Count | None = None
    """Stop after so many measurements without an improvement, and keep the best; needs `holdout`."""
    prompts: tuple[str, ...] = ()
    """Drawn with fixed seeds while the run goes on, as a grid in the run's folder; may be given several times."""
    sample_every: Count = 100
    """Steps between these grids."""
    save_every: Count = 100
    """Steps between checkpoints."""
    tracker: Literal["tensorboard", "mlflow", "none"] = "tensorboard"
    """Where the curves go: the run's folder, or an MLflow server (MLFLOW_TRACKING_URI)."""

    def clashes(self) -> Iterator[InvalidField]:
        if self.patience is not None and self.holdout == 0:
            yield InvalidField("patience", "needs holdout: a share of the pictures to measure on, 0.1 say", "holdout")
        if self.keep_tokens and not self.shuffle_tags:
            yield InvalidField("keep_tokens", "is for shuffle_tags", "shuffle_tags")

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Every field, so that later defaults change nothing."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


Layers = Literal["attention", "transformer", "all"]
"""Queries, keys, values and their output; all of the attention blocks; convolutions of the residual blocks, too."""
Train = Literal["unet", "text", "both"]


class PrivateRecipe(Recipe):
    """What the kinds have that can be trained with differential privacy."""

    dp: bool = False
    """Train with differential privacy (DP-SGD): the result tells next to nothing of any one picture, and is worse."""
    dp_epsilon: Annotated[float, Field(gt=0, le=1000)] = 8.0
    """How much it may tell, by the accountant rdp: below 1 is strong, 8 is usual, far above is little protection."""
    dp_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """How likely the promise may fail; well below one over the number of pictures."""
    dp_clip: Annotated[float, Field(ge=1e-9, le=1e9)] = 1.0
    """Longest gradient of one picture."""

    def clashes(self) -> Iterator[InvalidField]:
        yield from super().clashes()
        if self.dp and self.accumulate > 1:
            why = "differential privacy takes its pictures one by one: give a larger batch instead"
            yield InvalidField("accumulate", why, "dp")


class LoraRecipe(PrivateRecipe):
    kind: Literal["lora"] = "lora"  # pyright: ignore[reportGeneralTypeIssues]
    rate: Rate = 1e-3
    """Learning rate."""
    train: Train = "unet"
    """The network that draws, the one that reads, or both."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Of the matrices that are added to each layer: what the file can hold."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The difference is multiplied by alpha / rank; left out: alpha is the rank."""
    layers: Layers = "transformer"
    """attention: queries, keys, values, outputs; transformer: all of the attention blocks; all: convolutions, too."""


class DreamBoothRecipe(Recipe):
    kind: Literal["dreambooth"] = "dreambooth"  # pyright: ignore[reportGeneralTypeIssues]
    prompt: str
    """What every picture shows, with a rare word: "a sks dog". It stands in for captions."""
    class_prompt: str | None = None
    """What the thing is one of: "a dog". The model draws such pictures itself first and is kept drawing them."""
    class_pictures: Annotated[int, Field(ge=1, le=10_000)] = 50
    """How many of these are drawn; they are kept for other runs."""
    prior_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How much they count against the pictures of the thing."""
    rate: Rate = 1e-3
    """Learning rate; with `whole`, 100 times less."""
    train: Train = "unet"
    """The network that draws, the one that reads, or both."""
    whole: bool = False
    """Train all weights and save a model, instead of a LoRA."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Of the LoRA."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Of the LoRA; left out: the rank."""
    layers: Layers = "transformer"
    """Of the LoRA: attention, transformer, or all."""


class EmbeddingRecipe(PrivateRecipe):
    kind: Literal["embedding"] = "embedding"  # pyright: ignore[reportGeneralTypeIssues]
    rate: Rate = 5e-3
    """Learning rate."""
    weight_decay: Fraction = 0.0
    """AdamW's."""
    vectors: Annotated[int, Field(ge=1, le=32)] = 1
    """How many tokens the new word is."""
    init: str = "*"
    """Word whose meaning it begins with."""
    concept: Literal["object", "style"] = "object"
    """What the sentences around the new word say it is."""
    use_captions: bool = False
    """Read the captions, which must contain the name, instead of making sentences around it."""


class FullRecipe(Recipe):
    kind: Literal["full"] = "full"  # pyright: ignore[reportGeneralTypeIssues]
    rate: Rate = 1e-5
    """Learning rate."""
    train: Train = "unet"
    """The network that draws, the one that reads, or both."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Save a running average of the weights with this decay, usually 0.9999."""


AnyRecipe = LoraRecipe | DreamBoothRecipe | EmbeddingRecipe | FullRecipe
KINDS: dict[str, type[AnyRecipe]] = {
    "lora": LoraRecipe,
    "dreambooth": DreamBoothRecipe,
    "embedding": EmbeddingRecipe,
    "full": FullRecipe,
}
RecipeByKind = Annotated[Annotated[AnyRecipe, Field(discriminator="kind")], WrapValidator(untagged)]
_RECIPE: TypeAdapter[AnyRecipe] = TypeAdapter(RecipeByKind)


def parse_recipe(values: Mapping[str, Any]) -> AnyRecipe:
    """
    Raises:
        InvalidRequest: what is wrong, by field, all at once.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidRequest(f"kind is one of {', '.join(KINDS)}, not {kind!r}{nearest(str(kind), list(KINDS))}")
    try:
        return _RECIPE.validate_python(values)
    except ValidationError as error:
        refuse(error)


def read_recipe(path: Path) -> dict[str, Any]:
    """The fields that a YAML file names."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequest(f"recipe {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"recipe {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"recipe {path} must hold fields like `steps: 500`")
    return {str(name): value for name, value in values.items()}


def changed(before: AnyRecipe, now: AnyRecipe) -> list[str]:
    """The fields that make it another run."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    # The noise of a private run was chosen for its number of steps.
    free = CHANGEABLE - {"steps"} if isinstance(now, PrivateRecipe) and now.dp else CHANGEABLE
    return sorted(name for name in old.keys() | new.keys() if name not in free and old.get(name) != new.get(name))
