"""Pictures made ready for a model, and the batches that a run is shown.

    checked examples -> a bucket each -> latents (cached) -> batch(number)

A batch follows from (seed, number) alone: which pictures, what is said of them, noise and timesteps. A run that was
killed, or that runs on another number of devices, is shown the same.
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
from safelight.lifecycle.training.buckets import Crop, Size, cut_for, nearest_size, sizes
from safelight.lifecycle.training.check import MAX_BYTES, MAX_PIXELS, CheckedExample
from safelight.lifecycle.training.recipe import Recipe
from safelight.lifecycle.training.seeds import seed_of
from safelight.lifecycle.training.sources import Example
from safelight.models.checkpoints.families import Description
from safelight.models.networks.latents import VAE, encode, from_pil

ORDER, WORDS, NOISE, MIRROR = 2, 3, 4, 5
"""What a seed is for: each draws from a stream of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """One picture, and how it is cut for its bucket."""

    example: Example
    size: Size
    cut: Crop


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """What the network is asked, for this process: b pictures, of which `count` are the learner's own."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: list[str]
    time_ids: Tensor
    """(b, 6) SDXL's original size, crop and target size, each height before width."""
    masks: Tensor | None
    """(b, 1, h, w) what of each picture counts."""
    weights: Tensor
    """(b,) how much each picture counts."""
    count: int

    def loss(self, errors: Tensor) -> Tensor:
        """The mean over the learner's own pictures; those of the class are added to it by their weight."""
        return (self.weights * errors).sum() / self.count


Latent = Callable[[Ready, bool], tuple[Tensor, Tensor | None]]
"""A picture, mirrored or not, as latents (c, h, w) and mask (1, h, w)."""
Say = Callable[[str, random.Random], str]
"""What is said of a picture with this caption, this time."""


def make_ready(good: Sequence[CheckedExample], about: Description, recipe: Recipe) -> list[Ready]:
    """Each picture in the bucket nearest to its proportions."""
    resolution = recipe.resolution or about.defaults.width
    step = step_of(about)
    square = max(step, resolution // step * step)
    among = sizes(resolution, step) if recipe.buckets else [(square, square)]
    return [
        Ready(example=seen.example, size=seen.size, cut=cut_for(seen.size, nearest_size(seen.size, among)))
        for seen in good
    ]


def step_of(about: Description) -> int:
    """Sides are multiples of this, so that every level of the UNet halves them evenly: 64 for Stable Diffusion 1."""
    return about.vae_scale * 2 ** (len(about.unet["block_out_channels"]) - 1)


def hold_out(ready: Sequence[Ready], share: float, seed: int) -> tuple[list[Ready], list[Ready]]:
    """Those to learn from, and those kept aside: at least one of each where a share is asked for."""
    if not share:
        return list(ready), []
    if len(ready) < 2:
        raise InvalidRequest("holdout needs two pictures or more")
    order = list(range(len(ready)))
    random.Random(seed_of(seed, ORDER)).shuffle(order)
    held = set(order[: min(len(ready) - 1, max(1, round(share * len(ready))))])
    return [one for i, one in enumerate(ready) if i not in held], [one for i, one in enumerate(ready) if i in held]


class Dataset:
    def __init__(
        self,
        own: Sequence[Ready],
        latent: Latent,
        recipe: Recipe,
        *,
        say: Say,
        num_timesteps: int,
        of_class: Sequence[Ready] = (),
        prior_weight: float = 1.0,
    ) -> None:
        self.own = own
        self.latent = latent
        self.recipe = recipe
        self.say = say
        self.num_timesteps = num_timesteps
        self.of_class = of_class
        self.prior_weight = prior_weight
        self.epoch = lru_cache(maxsize=2)(self.arrange)

    @property
    def buckets(self) -> dict[Size, int]:
        return dict(Counter(ready.cut.bucket for ready in self.own))

    def arrange(self, number: int) -> list[list[Ready]]:
        """Batches that show every picture once; each of one bucket, filled up from that bucket's beginning."""
        draw = random.Random(seed_of(self.recipe.seed, number, ORDER))
        batches: list[list[Ready]] = []
        for bucket in sorted(self.buckets):
            inside = [ready for ready in self.own if ready.cut.bucket == bucket]
            draw.shuffle(inside)
            count = -(-len(inside) // self.recipe.batch)
            endless = cycle(inside)
            batches += [list(islice(endless, self.recipe.batch)) for _ in range(count)]
        draw.shuffle(batches)
        return batches

    def batch(self, number: int, *, process: int = 0, of: int = 1, device: torch.device) -> TrainingBatch:
        """This process's share of the batch of that number."""
        per_epoch = len(self.epoch(0))
        shown = self.epoch(number // per_epoch)[number % per_epoch]
        draw = random.Random(seed_of(self.recipe.seed, number, WORDS))
        captions = [self.say(ready.example.caption or "", draw) for ready in shown]
        if self.of_class:
            fitting = [ready for ready in self.of_class if ready.cut.bucket == shown[0].cut.bucket]
            others = [draw.choice(fitting) for _ in shown]
            shown, captions = [*shown, *others], [*captions, *(other.example.caption or "" for other in others)]
        mirror = random.Random(seed_of(self.recipe.seed, number, MIRROR))
        mirrored = [self.recipe.flip and mirror.random() < 0.5 for _ in shown]
        whole = assemble(
            shown,
            captions,
            [self.latent(ready, flipped) for ready, flipped in zip(shown, mirrored, strict=True)],
            seed=seed_of(self.recipe.seed, number, NOISE),
            num_timesteps=self.num_timesteps,
            offset=self.recipe.offset_noise,
        )
        rows = [row for row in range(len(shown)) if row % self.recipe.batch % of == process]
        count = self.recipe.batch // of
        weights = torch.tensor([1.0] * count + [self.prior_weight] * (len(rows) - count))
        return placed(take(whole, rows, weights, count), device)


def assemble(
    shown: Sequence[Ready],
    captions: list[str],
    latents: Sequence[tuple[Tensor, Tensor | None]],
    *,
    seed: int,
    num_timesteps: int,
    offset: float = 0.0,
) -> TrainingBatch:
    """With noise and timesteps, which are drawn on the CPU in float32, wherever the network runs."""
    generator = torch.Generator().manual_seed(seed)
    stacked = torch.stack([latent for latent, _ in latents])
    noise = torch.randn(stacked.shape, generator=generator)
    timesteps = torch.randint(0, num_timesteps, (len(stacked),), generator=generator)
    if offset:
        noise = noise + offset * torch.randn(*stacked.shape[:2], 1, 1, generator=generator)
    masks = [mask for _, mask in latents if mask is not None]
    if 0 < len(masks) < len(latents):  # the model's own pictures of the class have none
        masks = [torch.ones_like(latent[:1]) if mask is None else mask for latent, mask in latents]
    return TrainingBatch(
        latents=stacked,
        noise=noise,
        timesteps=timesteps,
        captions=captions,
        time_ids=torch.tensor([time_ids(ready) for ready in shown], dtype=torch.float32),
        masks=torch.stack(masks) if masks else None,
        weights=torch.ones(len(stacked)),
        count=len(stacked),
    )


def time_ids(ready: Ready) -> list[int]:
    width, height = ready.size
    return [height, width, ready.cut.top, ready.cut.left, ready.cut.bucket[1], ready.cut.bucket[0]]


def take(batch: TrainingBatch, rows: list[int], weights: Tensor, count: int) -> TrainingBatch:
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


def placed(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    names = ("latents", "noise", "timesteps", "time_ids", "weights", "masks")
    found = {name: getattr(batch, name) for name in names}
    return replace(batch, **{name: tensor.to(device) for name, tensor in found.items() if tensor is not None})


def encode_picture(ready: Ready, vae: VAE, *, mask: str, flipped: bool) -> tuple[Tensor, Tensor | None]:
    """The mean of the autoencoder's posterior, in float32, and what counts of it."""
    picture = open_image(ready.example.read(), max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES, mode="RGBA")
    plain = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    plain = mirrored(ready.cut.apply(plain), flipped)
    latent = encode(vae, from_pil(plain)[None])[0].cpu()
    if mask == "none":
        return latent, None
    if mask == "alpha":
        kept = picture.getchannel("A")
    else:
        assert ready.example.read_mask is not None, "checked before"
        kept = open_image(ready.example.read_mask(), max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES).convert("L")
        kept = kept.resize(picture.size, Image.Resampling.BOX)
    small = mirrored(ready.cut.apply(kept), flipped).resize((latent.shape[2], latent.shape[1]), Image.Resampling.BOX)
    return latent, torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, *latent.shape[1:]) / 255


def mirrored(image: Image.Image, flipped: bool) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image
