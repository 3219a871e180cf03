"""Has a version learnt its pictures by heart? Its samples beside what it was trained on, and its losses.

samples, training pictures, held-out ones -> nearest pairs -> copies
losses of training pictures, of held-out ones -> can one be told from the other?
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
from safelight.lifecycle.evaluation.memorisation import auc_interval, find_neighbours, in_words, membership_auc
from safelight.lifecycle.evaluation.similarity import coarse_pixels
from safelight.lifecycle.promotion.compared_model import ComparedModel
from safelight.lifecycle.promotion.training_data import ComparisonData, in_known_words, pictures
from safelight.lifecycle.training.membership import denoising_losses
from safelight.models.adapters.lora_merge import merge
from safelight.models.checkpoints.families import describe
from safelight.models.networks.load import Model, load_model
from safelight.models.networks.placement import Placement
from safelight.models.networks.textual_inversion import load_embedding
from safelight.spec.effects import PinnedLora
from safelight.studio import Studio


class ImageTextEncoder(Protocol):
    """An image encoder with its text encoder (`models/vision/similarity.py`, `models/vision/clip_similarity.py`)."""

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor: ...
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor: ...


Heard = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much of it."""


@dataclass(frozen=True, slots=True)
class EmbeddedPictures:
    """Pictures, and what the image encoder makes of each."""

    images: list[Image.Image]
    vectors: Tensor

    def among(self, places: Sequence[int]) -> "EmbeddedPictures":
        return EmbeddedPictures([self.images[place] for place in places], self.vectors[list(places)])


def look_at(images: list[Image.Image], eyes: ImageTextEncoder) -> EmbeddedPictures:
    return EmbeddedPictures(images, eyes.embed_images(images) if images else torch.zeros(0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """A sample, and the training picture that is most like it by the image encoder."""

    sample: int
    training: int
    distance: float
    """By the image encoder: between unit vectors, 0 to 2."""
    pixel_distance: float
    """From the nearest training picture by pixels, which may be another one."""
    is_copy: bool
    """Nearer by both than pictures that were never seen are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    num_training: int
    num_held_out: int
    num_samples: int
    nearest: tuple[Nearest, ...]
    """Of each sample."""
    too_near: float
    too_near_in_pixels: float
    """What only one in twenty held-out pictures is below."""
    membership_auc: float | None = None
    """None where hardly a picture was held out."""
    auc_low: float | None = None
    auc_high: float | None = None

    @property
    def copied(self) -> list[Nearest]:
        return [one for one in self.nearest if one.is_copy]

    @property
    def numbers(self) -> dict[str, float]:
        """What a policy may bound."""
        found = {
            "copies": len(self.copied) / self.num_samples,
            "nearest_by_encoder": median(one.distance for one in self.nearest),
            "too_near_by_encoder": self.too_near,
            "nearest_by_pixels": median(one.pixel_distance for one in self.nearest),
            "too_near_by_pixels": self.too_near_in_pixels,
        }
        if self.membership_auc is None or self.auc_low is None or self.auc_high is None:
            return found
        interval = {"membership_auc_low": self.auc_low, "membership_auc_high": self.auc_high}
        return found | {"membership_auc": self.membership_auc} | interval

    @property
    def words(self) -> list[str]:
        """The findings, for who reads a report."""
        said = [
            f"{len(self.copied)} of {self.num_samples} samples are nearer to a training picture, in shape and in what "
            "they show, than "
            + (
                f"19 of 20 of the {self.num_held_out} held-out pictures are."
                if self.num_held_out
                else "19 of 20 training pictures are to each other; none were held out."
            )
        ]
        if self.membership_auc is None:
            return [
                *said,
                "Whether training pictures can be told from others was not measured: none were held out. Train with "
                "--holdout 0.2, or name some like them with --held-out.",
            ]
        return [
            *said,
            f"{in_words(self.membership_auc)} (Area under the curve {self.membership_auc:.2f}, "
            f"95 % interval {self.auc_low:.2f} to {self.auc_high:.2f}; .5 is a coin.)",
        ]


def audit(
    side: ComparedModel,
    base: Model,
    before: Model | None,
    samples: EmbeddedPictures,
    own: EmbeddedPictures,
    material: ComparisonData,
    eyes: ImageTextEncoder,
    studio: Studio,
    *,
    heard: Heard,
) -> Audit:
    """Of samples for what was learnt.

    A copy is near both by the image encoder and by coarse pixels: a new picture of the object that was learnt is near
    by the first alone, one of the same colours by the second alone.

    Args:
        base: the model that the side is drawn with, before a LoRA or an embedding was added.
        before: the model before any training, if it is known: for a LoRA or an embedding, `base`.
        own: the pictures of the material that it was trained on.
    """
    held = look_at(pictures(material.held), eyes)
    if len(own.images) < 2 and not held.images:
        raise InvalidRequest(
            "one training picture alone says nothing of how near is too near; name pictures like it with --held-out"
        )
    by_eye = find_neighbours(samples.vectors, own.vectors, held.vectors if held.images else None)
    by_pixel = find_neighbours(
        coarse_pixels(samples.images),
        coarse_pixels(own.images),
        coarse_pixels(held.images) if held.images else None,
    )
    copies = {*by_eye.copies} & {*by_pixel.copies}
    found = Audit(
        num_training=len(own.images),
        num_held_out=len(held.images),
        num_samples=len(samples.images),
        nearest=tuple(
            Nearest(
                sample=sample,
                training=by_eye.nearest[sample],
                distance=by_eye.distances[sample],
                pixel_distance=by_pixel.distances[sample],
                is_copy=sample in copies,
            )
            for sample in range(len(samples.images))
        ),
        too_near=by_eye.threshold,
        too_near_in_pixels=by_pixel.threshold,
    )
    if len(held.images) < 2:
        return found
    members, others = known_better(side, base, before, material, studio, heard=heard)
    low, high = auc_interval(members, others)
    return replace(found, membership_auc=membership_auc(members, others), auc_low=low, auc_high=high)


def known_better(
    side: ComparedModel, base: Model, before: Model | None, material: ComparisonData, studio: Studio, *, heard: Heard
) -> tuple[Tensor, Tensor]:
    """The losses of training and of held-out pictures, each less what the model before the training loses on it.

    A plain picture has a low loss whoever saw it; what the training took off it does not depend on that. Where the
    model before is not known, the losses stand as they are.
    """
    model, words = trained(side, base, studio)
    shown = [(one, material.caption(one)) for one in (*material.own, *material.held)]
    known = [(one, in_known_words(caption, material.recipe)) for one, caption in shown]
    done, total = count(1), len(shown) * (1 if before is None else 2)

    def on_event() -> None:
        heard("losses", next(done), total)

    losses = denoising_losses(model, shown, words=words, heard=on_event)
    if before is not None:
        losses = losses - denoising_losses(before, known, heard=on_event)
    return losses[: len(material.own)], losses[len(material.own) :]


def trained(side: ComparedModel, base: Model, studio: Studio) -> tuple[Model, dict[str, tuple[Tensor, ...]]]:
    """The model with what was learnt in its weights, and the words that were."""
    version = side.version
    if version is None or version.kind == "checkpoint":
        return base, {}
    if version.kind == "embedding":
        embedding = load_embedding(studio.models.catalogue, version.reference, version.digest)
        return base, {version.name: tuple(each.to(base.placement.device) for each in embedding.vectors)}
    active = studio.loras.load([PinnedLora(name=version.reference, digest=version.digest)], base)
    return merge(base, active, name=side.name), {}


def open_whole(name: str, digest: str, studio: Studio) -> Model:
    """A model by itself, in float32: losses differ by less than half precision rounds."""
    path = studio.models.catalogue.find(name)
    placement = Placement(studio.models.placement.device, torch.float32)
    return load_model(describe(path), name=name, digest=digest, placement=placement)
