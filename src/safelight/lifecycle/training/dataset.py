"""Pictures cropped to their buckets, and the batches of a run.

    checked examples -> a bucket each -> latents (cached) -> batch(number)

A batch depends only on (seed, number): its pictures, captions, noise and timesteps. A resumed run, or one on another
number of devices, gets the same batches.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import cycle, islice

import torch
from PIL import Image
from torch import Tensor

from safelight.errors import InvalidRequest
from safelight.imaging.open_image import open_image
from safelight.lifecycle.training.buckets import Crop, Size, bucket_sizes, crop_for, nearest_size
from safelight.lifecycle.training.check import MAX_BYTES, MAX_PIXELS, CheckedExample
from safelight.lifecycle.training.recipe import Recipe
from safelight.lifecycle.training.seeds import seed_of
from safelight.lifecycle.training.sources import Example
from safelight.models.checkpoints.families import Description
from safelight.models.networks.latents import VAE, encode, from_pil

ORDER, WORDS, NOISE, MIRROR = 2, 3, 4, 5
"""Numbers of the random streams of a seed, one for each use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPicture:
    """One picture, its size, and its crop to its bucket."""

    example: Example
    size: Size
    crop: Crop


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """One process's batch: b pictures, of which the first `count` are training pictures, the others class pictures."""

    latents: Tensor
    """(b, c, h, w)"""
    noise: Tensor
    """(b, c, h, w)"""
    timesteps: Tensor
    """(b,) int64"""
    captions: list[str]
    time_ids: Tensor
    """(b, 6) SDXL's original size, crop and target size, each height before width."""
    masks: Tensor | None
    """(b, 1, h, w) in [0, 1], the loss weight within each picture."""
    weights: Tensor
    """(b,) the loss weight of each picture."""
    count: int

    def loss(self, errors: Tensor) -> Tensor:
        """The mean error (b,) of the training pictures, plus that of the class pictures by their weight: scalar."""
        return (self.weights * errors).sum() / self.count


LoadLatent = Callable[[TrainingPicture, bool], tuple[Tensor, Tensor | None]]
"""A picture, mirrored or not, as latent (c, h, w) and mask (1, h, w)."""
AugmentCaption = Callable[[str, random.Random], str]
"""The caption to train with, from a picture's own caption; called each time the picture is used."""


def assign_buckets(good: Sequence[CheckedExample], description: Description, recipe: Recipe) -> list[TrainingPicture]:
    """Crop each picture to the bucket nearest to its aspect ratio."""
    resolution = recipe.resolution or description.defaults.width
    step = size_multiple(description)
    square = max(step, resolution // step * step)
    buckets = bucket_sizes(resolution, step) if recipe.buckets else [(square, square)]
    return [
        TrainingPicture(
            example=checked.example,
            size=checked.size,
            crop=crop_for(checked.size, nearest_size(checked.size, buckets)),
        )
        for checked in good
    ]


def size_multiple(description: Description) -> int:
    """Sides must be multiples of this, so that each UNet level halves them evenly: 64 for Stable Diffusion 1."""
    return description.vae_scale * 2 ** (len(description.unet["block_out_channels"]) - 1)


def hold_out(
    pictures: Sequence[TrainingPicture], share: float, seed: int
) -> tuple[list[TrainingPicture], list[TrainingPicture]]:
    """Split into training and held-out pictures; with a share above 0, at least one of each."""
    if not share:
        return list(pictures), []
    if len(pictures) < 2:
        raise InvalidRequest("holdout needs two pictures or more")
    order = list(range(len(pictures)))
    random.Random(seed_of(seed, ORDER)).shuffle(order)
    held_out = set(order[: min(len(pictures) - 1, max(1, round(share * len(pictures))))])
    return (
        [picture for i, picture in enumerate(pictures) if i not in held_out],
        [picture for i, picture in enumerate(pictures) if i in held_out],
    )


class Dataset:
    """The batches of a run, by number; with prior pictures, each batch has as many of these as training pictures."""

    def __init__(
        self,
        pictures: Sequence[TrainingPicture],
        load_latent: LoadLatent,
        recipe: Recipe,
        *,
        augment: AugmentCaption,
        num_timesteps: int,
        prior_pictures: Sequence[TrainingPicture] = (),
        prior_weight: float = 1.0,
    ) -> None:
        self.pictures = pictures
        self.load_latent = load_latent
        self.recipe = recipe
        self.augment = augment
        self.num_timesteps = num_timesteps
        self.prior_pictures = prior_pictures
        self.prior_weight = prior_weight
        self.epoch = lru_cache(maxsize=2)(self.arrange)

    @property
    def buckets(self) -> dict[Size, int]:
        """The number of training pictures by bucket."""
        return dict(Counter(picture.crop.bucket for picture in self.pictures))

    def arrange(self, number: int) -> list[list[TrainingPicture]]:
        """Batches with every picture once; each batch is of one bucket, and the last repeats that bucket's first."""
        rng = random.Random(seed_of(self.recipe.seed, number, ORDER))
        batches: list[list[TrainingPicture]] = []
        for bucket in sorted(self.buckets):
            inside = [picture for picture in self.pictures if picture.crop.bucket == bucket]
            rng.shuffle(inside)
            count = -(-len(inside) // self.recipe.batch)
            endless = cycle(inside)
            batches += [list(islice(endless, self.recipe.batch)) for _ in range(count)]
        rng.shuffle(batches)
        return batches

    def batch(self, number: int, *, process: int = 0, of: int = 1, device: torch.device) -> TrainingBatch:
        """Batch `number`: the share of process `process` out of `of` processes."""
        per_epoch = len(self.epoch(0))
        pictures = self.epoch(number // per_epoch)[number % per_epoch]
        rng = random.Random(seed_of(self.recipe.seed, number, WORDS))
        captions = [self.augment(picture.example.caption or "", rng) for picture in pictures]
        if self.prior_pictures:
            of_bucket = [prior for prior in self.prior_pictures if prior.crop.bucket == pictures[0].crop.bucket]
            priors = [rng.choice(of_bucket) for _ in pictures]
            pictures, captions = [*pictures, *priors], [*captions, *(prior.example.caption or "" for prior in priors)]
        mirror = random.Random(seed_of(self.recipe.seed, number, MIRROR))
        mirrored = [self.recipe.flip and mirror.random() < 0.5 for _ in pictures]
        whole = make_batch(
            pictures,
            captions,
            [self.load_latent(picture, flipped) for picture, flipped in zip(pictures, mirrored, strict=True)],
            seed=seed_of(self.recipe.seed, number, NOISE),
            num_timesteps=self.num_timesteps,
            offset=self.recipe.offset_noise,
        )
        rows = [row for row in range(len(pictures)) if row % self.recipe.batch % of == process]
        count = self.recipe.batch // of
        weights = torch.tensor([1.0] * count + [self.prior_weight] * (len(rows) - count))
        return to_device(select_rows(whole, rows, weights, count), device)


def make_batch(
    pictures: Sequence[TrainingPicture],
    captions: list[str],
    latents: Sequence[tuple[Tensor, Tensor | None]],
    *,
    seed: int,
    num_timesteps: int,
    offset: float = 0.0,
) -> TrainingBatch:
    """A batch from latents (c, h, w) and masks (1, h, w); noise and timesteps are drawn on the CPU in float32."""
    generator = torch.Generator().manual_seed(seed)
    stacked = torch.stack([latent for latent, _ in latents])
    noise = torch.randn(stacked.shape, generator=generator)
    timesteps = torch.randint(0, num_timesteps, (len(stacked),), generator=generator)
    if offset:
        noise = noise + offset * torch.randn(*stacked.shape[:2], 1, 1, generator=generator)
    masks = [mask for _, mask in latents if mask is not None]
    if 0 < len(masks) < len(latents):  # class pictures have no masks
        masks = [torch.ones_like(latent[:1]) if mask is None else mask for latent, mask in latents]
    return TrainingBatch(
        latents=stacked,
        noise=noise,
        timesteps=timesteps,
        captions=captions,
        time_ids=torch.tensor([time_ids(picture) for picture in pictures], dtype=torch.float32),
        masks=torch.stack(masks) if masks else None,
        weights=torch.ones(len(stacked)),
        count=len(stacked),
    )


def time_ids(picture: TrainingPicture) -> list[int]:
    """SDXL's original size, crop and target size, each height before width."""
    width, height = picture.size
    return [height, width, picture.crop.top, picture.crop.left, picture.crop.bucket[1], picture.crop.bucket[0]]


def select_rows(batch: TrainingBatch, rows: list[int], weights: Tensor, count: int) -> TrainingBatch:
    """Some rows of a batch, with new weights (rows,)."""
    return TrainingBatch(
        latents=batch.latents[rows],
        noise=batch.noise[rows],
        timesteps=batch.timesteps[rows],
        captions=[batch.captions[row] for row in rows],
        time_ids=batch.time_ids[rows],
        masks=None if batch.masks is None else batch.masks[rows],
        weights=weights,
        count=count,
    )


def to_device(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    names = ("latents", "noise", "timesteps", "time_ids", "weights", "masks")
    tensors = {name: getattr(batch, name) for name in names}
    return replace(batch, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})


def encode_picture(picture: TrainingPicture, vae: VAE, *, mask: str, flipped: bool) -> tuple[Tensor, Tensor | None]:
    """The mean of the autoencoder's posterior (c, h, w) in float32, and the loss mask (1, h, w) in [0, 1]."""
    image = open_image(picture.example.read(), max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES, mode="RGBA")
    plain = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    plain = mirrored(picture.crop.apply(plain), flipped)
    latent = encode(vae, from_pil(plain)[None])[0].cpu()
    if mask == "none":
        return latent, None
    if mask == "alpha":
        weight = image.getchannel("A")
    else:
        assert picture.example.read_mask is not None, "checked before"
        weight = open_image(picture.example.read_mask(), max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES).convert("L")
        weight = weight.resize(image.size, Image.Resampling.BOX)
    weight = mirrored(picture.crop.apply(weight), flipped)
    small = weight.resize((latent.shape[2], latent.shape[1]), Image.Resampling.BOX)
    return latent, torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, *latent.shape[1:]) / 255


def mirrored(image: Image.Image, flipped: bool) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image
