"""Has a version memorised its training pictures? Two tests: nearest neighbours and membership inference.

samples, training pictures, held-out pictures -> nearest pairs -> copies
losses on training pictures, on held-out pictures -> area under the curve
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from statistics import median
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from safelight.errors import InvalidRequest
from safelight.lifecycle.evaluation.memorisation import auc_interval, describe_auc, find_neighbours, membership_auc
from safelight.lifecycle.evaluation.similarity import coarse_pixels
from safelight.lifecycle.promotion.compared_model import ComparedModel
from safelight.lifecycle.promotion.training_data import ComparisonData, open_pictures, replace_new_word
from safelight.lifecycle.training.membership import denoising_losses
from safelight.models.adapters.lora_effect import LoraEffect
from safelight.models.adapters.lora_merge import merge
from safelight.models.checkpoints.families import describe
from safelight.models.networks.load import Model, load_model
from safelight.models.networks.placement import Placement
from safelight.models.networks.textual_inversion import load_embedding
from safelight.spec.effects import PinnedLora
from safelight.studio import Studio


class ImageTextEncoder(Protocol):
    """An image encoder with its text encoder (`models/vision/similarity.py`, `models/vision/clip_similarity.py`)."""

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (n, dim)."""
        ...

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (n, dim), comparable to those of images."""
        ...


OnProgress = Callable[[str, int, int], None]
"""Called with the task's name, how much of it is done, and its total."""


@dataclass(frozen=True, slots=True)
class EmbeddedPictures:
    """Pictures and their vectors from the image encoder, (n, dim)."""

    images: list[Image.Image]
    vectors: Tensor

    def select(self, indices: Sequence[int]) -> "EmbeddedPictures":
        return EmbeddedPictures([self.images[index] for index in indices], self.vectors[list(indices)])


def embed(images: list[Image.Image], encoder: ImageTextEncoder) -> EmbeddedPictures:
    return EmbeddedPictures(images, encoder.embed_images(images) if images else torch.zeros(0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """A sample and its nearest training picture by the image encoder, as indices."""

    sample: int
    training: int
    distance: float
    """Between the unit vectors of the image encoder, 0 to 2."""
    pixel_distance: float
    """To the nearest training picture by pixels, which may be a different one."""
    is_copy: bool
    """Both distances are below their thresholds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    num_training: int
    num_held_out: int
    num_samples: int
    nearest: tuple[Nearest, ...]
    """One for each sample."""
    threshold: float
    pixel_threshold: float
    """Only one in twenty held-out pictures is nearer to a training picture than these distances."""
    membership_auc: float | None = None
    """None with fewer than two held-out pictures."""
    auc_low: float | None = None
    auc_high: float | None = None

    @property
    def copies(self) -> list[Nearest]:
        return [pair for pair in self.nearest if pair.is_copy]

    @property
    def numbers(self) -> dict[str, float]:
        """Metrics by the names that a policy uses."""
        numbers = {
            "copies": len(self.copies) / self.num_samples,
            "nearest_by_encoder": median(pair.distance for pair in self.nearest),
            "too_near_by_encoder": self.threshold,
            "nearest_by_pixels": median(pair.pixel_distance for pair in self.nearest),
            "too_near_by_pixels": self.pixel_threshold,
        }
        if self.membership_auc is None or self.auc_low is None or self.auc_high is None:
            return numbers
        interval = {"membership_auc_low": self.auc_low, "membership_auc_high": self.auc_high}
        return numbers | {"membership_auc": self.membership_auc} | interval

    @property
    def findings(self) -> list[str]:
        """The results in sentences, for the report."""
        copies = (
            f"{len(self.copies)} of {self.num_samples} samples are nearer to a training picture, in pixels and in "
            "content, than "
            + (
                f"19 of 20 of the {self.num_held_out} held-out pictures are."
                if self.num_held_out
                else "19 of 20 training pictures are to each other; no pictures were held out."
            )
        )
        if self.membership_auc is None:
            return [
                copies,
                "Membership inference was not measured, because fewer than two pictures were held out. Train with "
                "--holdout 0.2, or give similar pictures with --held-out.",
            ]
        return [
            copies,
            f"{describe_auc(self.membership_auc)} (Area under the curve {self.membership_auc:.2f}, "
            f"95 % interval {self.auc_low:.2f} to {self.auc_high:.2f}; 0.5 is chance.)",
        ]


def audit(
    compared: ComparedModel,
    base: Model,
    before: Model | None,
    samples: EmbeddedPictures,
    training: EmbeddedPictures,
    data: ComparisonData,
    encoder: ImageTextEncoder,
    studio: Studio,
    *,
    on_progress: OnProgress,
) -> Audit:
    """Look for memorised training pictures in samples of the trained concept.

    A copy is near both by the image encoder and by coarse pixels: a new picture of the trained object is near
    by the first alone, a picture of the same colours by the second alone.

    Args:
        base: the model that `compared` is drawn with, before a LoRA or an embedding was added.
        before: the model before any training, if it is known: for a LoRA or an embedding, `base`.
        training: the training pictures of `data`.

    Raises:
        InvalidRequest: one training picture and no held-out ones give no threshold.
    """
    held_out = embed(open_pictures(data.held_out), encoder)
    if len(training.images) < 2 and not held_out.images:
        raise InvalidRequest(
            "with one training picture, the similarity from which a picture counts as a copy cannot be computed; give "
            "--held-out a folder of pictures of the same kind that were not trained on"
        )
    by_encoder = find_neighbours(samples.vectors, training.vectors, held_out.vectors if held_out.images else None)
    by_pixel = find_neighbours(
        coarse_pixels(samples.images),
        coarse_pixels(training.images),
        coarse_pixels(held_out.images) if held_out.images else None,
    )
    copies = {*by_encoder.copies} & {*by_pixel.copies}
    result = Audit(
        num_training=len(training.images),
        num_held_out=len(held_out.images),
        num_samples=len(samples.images),
        nearest=tuple(
            Nearest(
                sample=sample,
                training=by_encoder.nearest[sample],
                distance=by_encoder.distances[sample],
                pixel_distance=by_pixel.distances[sample],
                is_copy=sample in copies,
            )
            for sample in range(len(samples.images))
        ),
        threshold=by_encoder.threshold,
        pixel_threshold=by_pixel.threshold,
    )
    if len(held_out.images) < 2:
        return result
    members, others = relative_losses(compared, base, before, data, studio, on_progress=on_progress)
    low, high = auc_interval(members, others)
    return replace(result, membership_auc=membership_auc(members, others), auc_low=low, auc_high=high)


def relative_losses(
    compared: ComparedModel,
    base: Model,
    before: Model | None,
    data: ComparisonData,
    studio: Studio,
    *,
    on_progress: OnProgress,
) -> tuple[Tensor, Tensor]:
    """The losses on training pictures (n,) and on held-out ones (m,), each less the loss of the untrained model.

    A plain picture has a low loss whether or not it was trained on; the difference does not depend on that. Without
    the untrained model, the losses are returned as they are.
    """
    model, embeddings = apply_training(compared, base, studio)
    captioned = [(picture, data.caption(picture)) for picture in (*data.training, *data.held_out)]
    in_known_words = [(picture, replace_new_word(caption, data.recipe)) for picture, caption in captioned]
    done, total = count(1), len(captioned) * (1 if before is None else 2)

    def on_picture() -> None:
        on_progress("losses", next(done), total)

    losses = denoising_losses(model, captioned, embeddings=embeddings, on_picture=on_picture)
    if before is not None:
        losses = losses - denoising_losses(before, in_known_words, on_picture=on_picture)
    return losses[: len(data.training)], losses[len(data.training) :]


def apply_training(compared: ComparedModel, base: Model, studio: Studio) -> tuple[Model, dict[str, tuple[Tensor, ...]]]:
    """The model with a LoRA merged in, and by word the vectors (n, dim) of an embedding for each text encoder."""
    version = compared.version
    if version is None or version.kind == "checkpoint":
        return base, {}
    if version.kind == "embedding":
        embedding = load_embedding(studio.models.catalogue, version.reference, version.digest)
        return base, {version.name: tuple(each.to(base.placement.device) for each in embedding.vectors)}
    active = LoraEffect(studio.models.catalogue).load_all(
        [PinnedLora(name=version.reference, digest=version.digest)], base
    )
    return merge(base, active, name=compared.name), {}


def load_float32(name: str, digest: str, studio: Studio) -> Model:
    """Load a model in float32: losses differ by less than the rounding of half precision."""
    path = studio.models.catalogue.find(name)
    placement = Placement(studio.models.placement.device, torch.float32)
    return load_model(describe(path), name=name, digest=digest, placement=placement)
