"""The autoencoder recipe: 128x128 pictures to 16x16x4 whitened latents and back.

train_autoencoder  pictures -> AutoencoderKL (average) -> fold_whitening -> out/vae
encode_pictures    every picture on white, some on a coloured background -> out/latents.npy, views.json
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from safelight.lifecycle.mini.mini import AutoencoderRecipe, MiniRecipe
from safelight.lifecycle.mini.networks import new_autoencoder
from safelight.lifecycle.training.averaging import Average
from safelight.lifecycle.training.checkpoint import load_checkpoint, restore, save_checkpoint, snapshot
from safelight.lifecycle.training.optimizer import new_optimizers, set_rates
from safelight.lifecycle.training.rates import Until, rate_factor, shared_progress
from safelight.lifecycle.training.seeds import seed_of

BACKGROUNDS = {
    "red": (214, 58, 54),
    "orange": (245, 146, 48),
    "yellow": (250, 214, 70),
    "green": (84, 170, 84),
    "blue": (74, 134, 222),
    "purple": (142, 92, 196),
    "pink": (244, 150, 186),
    "gray": (150, 152, 156),
    "black": (28, 28, 32),
}
WHITE = (255, 255, 255)
LOG_VARIANCE = -12.0


def train_autoencoder(
    recipe: MiniRecipe,
    artwork: Path,
    out: Path,
    *,
    until: Until,
    start: AutoencoderKL | None = None,
) -> None:
    """Train, resuming from `out`, else from `start`; write the whitened average as the diffusers folder `out`/vae."""
    auto = recipe.autoencoder
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(out))
    accelerator.init_trackers("autoencoder")
    torch.manual_seed(auto.seed)
    pictures: NDArray[np.uint8] = np.load(artwork / "pictures.npy", mmap_mode="r")
    rows = training_rows(artwork)
    network = start or new_autoencoder(recipe)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizers = new_optimizers(
        network, muon_rate=auto.muon_rate, adam_rate=auto.adam_rate, weight_decay=0, is_matrix=is_inner_convolution
    )
    average = Average(network, auto.ema)
    model = accelerator.prepare(Reconstruction(network, auto.latent_noise))
    path = out / "autoencoder.pt"
    step, seconds = 0, 0.0
    if state := load_checkpoint(path):
        step, seconds = restore(state, network, average, optimizers)
    began = saved = time.time()
    while (progress := shared_progress(accelerator, until, step, began)) < 1:
        set_rates(optimizers, rate_factor(step, warmup=30, progress=progress, cooldown=auto.cooldown))
        # Crops first: four times as many steps for the same compute. Whole pictures at the end adapt the norm layers.
        side = auto.crop if progress < auto.crop_until else recipe.artwork.size
        images = draw_images(pictures, rows, auto, step=step, side=side)
        generator = torch.Generator().manual_seed(seed_of(auto.seed, step, accelerator.process_index))
        mine = images[accelerator.process_index :: accelerator.num_processes]
        outputs, latents = model(mine, generator)
        parts = picture_losses(mine, outputs) | latent_losses(latents)
        loss = picture_loss(parts, auto)
        loss = loss + auto.spread_weight * parts["spread"] + auto.roughness_weight * parts["roughness"]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
        step += 1
        if step % 50 == 0:
            numbers = {name: part.item() for name, part in parts.items()}
            accelerator.log(numbers | {"images": step * auto.batch}, step=step)
            shown = "  ".join(f"{name} {number:.4f}" for name, number in numbers.items())
            accelerator.print(f"{seconds + time.time() - began:6.0f} s  step {step}  {shown}", flush=True)
        if accelerator.is_main_process and time.time() - saved > 60:
            save_checkpoint(path, snapshot(step, seconds + time.time() - began, network, average, optimizers))
            saved = time.time()
    if accelerator.is_main_process:
        save_checkpoint(path, snapshot(step, seconds + time.time() - began, network, average, optimizers))
        with average.applied():
            fold_whitening(network, *latent_statistics(network, pictures, rows))
            network.to(memory_format=torch.contiguous_format).save_pretrained(out / "vae")  # pyright: ignore[reportCallIssue]
    # The other processes read the file that the main process writes.
    accelerator.wait_for_everyone()
    # Not `end_training`, which would also end the process group that the encoding needs.
    for tracker in accelerator.trackers:
        tracker.finish()


class Reconstruction(nn.Module):
    """Encode and decode, as one module so that several processes can share a batch.

    The latents, of about unit variance, get noise of a random strength per picture, so that the decoder tolerates a
    denoiser's small errors. That alone makes the encoder use all frequencies equally, and latents like white noise are
    hard to denoise; the loss on their roughness prevents this.
    """

    def __init__(self, network: AutoencoderKL, latent_noise: float) -> None:
        super().__init__()
        self.network = network
        self.latent_noise = latent_noise

    def forward(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (b, 3, h, w) in -1..1 -> reconstructions of the same shape, and latents without noise."""
        latents = self.network.encode(images).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        amount = self.latent_noise * torch.rand(len(images), 1, 1, 1, generator=generator)
        noisy = latents + amount * torch.randn(latents.shape, generator=generator)
        return self.network.decode(noisy).sample, latents  # pyright: ignore[reportAttributeAccessIssue]


def picture_losses(images: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    """Losses between (b, 3, h, w) and outputs of that shape: absolute and squared error of pixels, absolute error of
    their gradients and of 8x8 means."""
    return {
        "l1": (outputs - images).abs().mean(),
        "gradient": (outputs.diff(dim=-1) - images.diff(dim=-1)).abs().mean()
        + (outputs.diff(dim=-2) - images.diff(dim=-2)).abs().mean(),
        "mse": F.mse_loss(outputs, images),
        "colour": F.avg_pool2d(outputs - images, 8).abs().mean(),
    }


def picture_loss(parts: Mapping[str, Tensor], auto: AutoencoderRecipe) -> Tensor:
    """The weighted sum of the losses, a scalar."""
    edges, colour = auto.gradient_weight * parts["gradient"], auto.colour_weight * parts["colour"]
    return parts["l1"] + parts["mse"] + edges + colour


def latent_losses(latents: Tensor) -> dict[str, Tensor]:
    """For latents (b, c, h, w), deviation from zero mean and unit variance, and roughness: the difference of
    neighbours, 1 for white noise and less for latents that are easy to denoise.
    """
    return {
        "roughness": (latents.diff(dim=-1).square().mean() + latents.diff(dim=-2).square().mean()) / 4,
        "spread": (latents.mean((0, 2, 3)).square() + (latents.var((0, 2, 3)) - 1).square()).mean(),
    }


def draw_images(
    pictures: NDArray[np.uint8], rows: list[int], auto: AutoencoderRecipe, *, step: int, side: int
) -> Tensor:
    """One batch (b, 3, side, side) in -1..1: random pictures or crops, some mirrored, on white or a random colour."""
    draw = np.random.default_rng(seed_of(auto.seed, step, 1000))
    batch: list[Tensor] = []
    for row in draw.choice(rows, auto.batch, replace=False):
        top, left = draw.integers(0, pictures.shape[1] - side + 1, 2)
        picture = pictures[row][top : top + side, left : left + side]
        if draw.random() < 0.5:
            picture = picture[:, ::-1]
        on_colour = draw.random() < auto.background_share
        background = tuple(draw.integers(0, 256, 3)) if on_colour else WHITE
        batch.append(on_background(picture, background))
    return torch.stack(batch).contiguous(memory_format=torch.channels_last)


def on_background(picture: NDArray[np.uint8], colour: tuple[int, ...]) -> Tensor:
    """An RGBA picture over a plain colour, as a (3, height, width) tensor in -1..1."""
    alpha = picture[..., 3:].astype(np.float32) / 255
    flat = picture[..., :3] * alpha + np.asarray(colour, np.float32) * (1 - alpha)
    return torch.from_numpy(flat / 127.5 - 1).permute(2, 0, 1)


def training_rows(artwork: Path) -> list[int]:
    """Rows of pictures.npy that may be trained on."""
    held = set(json.loads((artwork / "holdout.json").read_text("utf-8")))
    pictures = json.loads((artwork / "pictures.json").read_text("utf-8"))
    return [row for row, picture in enumerate(pictures) if picture["key"] not in held]


def is_inner_convolution(name: str, param: Tensor) -> bool:
    """Whether a parameter, of any shape, is a convolution between hidden layers; the outer ones use AdamW."""
    return param.ndim == 4 and not any(end in name for end in ("conv_in", "conv_out", "quant_conv"))


@torch.no_grad()
def latent_statistics(network: AutoencoderKL, pictures: NDArray[np.uint8], rows: list[int]) -> tuple[Tensor, Tensor]:
    """Mean (c,) and covariance (c, c) of the latents of every eighth picture, on white."""
    means: list[Tensor] = []
    for chunk in batches_of(rows[::8], 32):
        images = torch.stack([on_background(pictures[row], WHITE) for row in chunk])
        means.append(network.encode(images).latent_dist.mean)  # pyright: ignore[reportAttributeAccessIssue]
    points = torch.cat(means).permute(0, 2, 3, 1).flatten(0, 2).double()
    return points.mean(0), points.T.cov()


@torch.no_grad()
def fold_whitening(network: AutoencoderKL, mean: Tensor, covariance: Tensor) -> None:
    """Fold z' = W (z - mean), W = covariance^-1/2, and its inverse into the 1x1 convolutions; mean (c,), covariance
    (c, c).

    The posterior gets the small constant LOG_VARIANCE: the recipe does not train it.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    white = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    colour = vectors @ torch.diag(values.sqrt()) @ vectors.T
    into, back = network.quant_conv, network.post_quant_conv
    assert into is not None and back is not None
    size = mean.numel()
    weight, bias = into.weight.double(), into.bias.double()  # pyright: ignore[reportOptionalMemberAccess]
    into.weight[:size] = torch.einsum("ij, jkhw -> ikhw", white, weight[:size]).float()
    into.bias[:size] = (white @ (bias[:size] - mean)).float()  # pyright: ignore[reportOptionalSubscript]
    into.weight[size:] = 0
    into.bias[size:] = LOG_VARIANCE  # pyright: ignore[reportOptionalSubscript]
    weight, bias = back.weight.double(), back.bias.double()  # pyright: ignore[reportOptionalMemberAccess]
    back.bias += torch.einsum("ijhw, j -> i", weight, mean).float()  # pyright: ignore[reportOperatorIssue]
    back.weight.copy_(torch.einsum("ikhw, kj -> ijhw", weight, colour).float())


@dataclass(frozen=True, slots=True)
class View:
    """One cached latent: a row of pictures.npy over a named background, or over white."""

    row: int
    background: str | None


@torch.no_grad()
def encode_pictures(recipe: MiniRecipe, artwork: Path, out: Path) -> None:
    """Cache latents.npy, one row a view: every picture on white, and popular concepts on a coloured background too."""
    accelerator = Accelerator(cpu=True)
    network = AutoencoderKL.from_pretrained(out / "vae")
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    pictures: NDArray[np.uint8] = np.load(artwork / "pictures.npy", mmap_mode="r")
    views = choose_views(recipe.autoencoder, artwork)
    side = recipe.artwork.size // 2 ** (len(recipe.autoencoder.channels) - 1)
    latents = torch.zeros(len(views), recipe.autoencoder.latent_channels, side, side)
    chunks = batches_of(list(range(len(views))), 16)
    for chunk in chunks[accelerator.process_index :: accelerator.num_processes]:
        colours = [BACKGROUNDS.get(views[index].background or "", WHITE) for index in chunk]
        images = [
            on_background(pictures[views[index].row], colour) for index, colour in zip(chunk, colours, strict=True)
        ]
        batch = torch.stack(images).contiguous(memory_format=torch.channels_last)
        latents[chunk] = network.encode(batch, return_dict=False)[0].mean
    # Each process filled its own rows and left zeros elsewhere.
    latents = accelerator.reduce(latents, "sum")
    if accelerator.is_main_process:
        np.save(out / "latents.partial.npy", latents.half().numpy())  # pyright: ignore[reportAttributeAccessIssue]
        (out / "latents.partial.npy").rename(out / "latents.npy")
        (out / "views.json").write_text(json.dumps([[view.row, view.background] for view in views]) + "\n", "utf-8")
    accelerator.wait_for_everyone()


def choose_views(auto: AutoencoderRecipe, artwork: Path) -> list[View]:
    """Choose the backgrounds on which each picture is cached."""
    about = json.loads((artwork / "pictures.json").read_text("utf-8"))
    core = {
        concept["slug"] for concept in json.loads((artwork / "concepts.json").read_text("utf-8")) if concept["core"]
    }
    draw = np.random.default_rng(auto.seed)
    views = [View(row, None) for row in range(len(about))]
    for row, picture in enumerate(about):
        if picture["concept"] in core and (picture["own_colour"] or draw.random() < auto.copies_on_background):
            views.append(View(row, str(draw.choice([name for name in BACKGROUNDS if name != picture["colour"]]))))
    return views


def batches_of(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
