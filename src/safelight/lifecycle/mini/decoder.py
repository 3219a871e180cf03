"""Train the decoder on latents that the denoiser made.

    latents -> noised to some level -> denoised in a few guided steps with their caption -> decoder -> the picture

The autoencoder's own training gives its decoder latents with white noise. The errors of a denoiser are different: flat
areas are slowly uneven, white is not white. A latent noised not too far and denoised again still shows the same
picture with such errors, so the picture is its target. The loss is pixel errors and a discriminator's score.
The latent space does not change, so the denoiser and LoRAs still work.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import CLIPTokenizer

from safelight.lifecycle.mini.autoencoder import (
    BACKGROUNDS,
    WHITE,
    batches_of,
    is_inner_convolution,
    on_background,
    picture_loss,
    picture_losses,
)
from safelight.lifecycle.mini.captions import STYLE_WORDS
from safelight.lifecycle.mini.denoiser import MiniDenoiser, MiniNoiseLevels
from safelight.lifecycle.mini.discriminator import Discriminator, hinge_loss, slope_with
from safelight.lifecycle.mini.mini import DecoderRecipe, MiniRecipe
from safelight.lifecycle.mini.pictures import Pictures
from safelight.lifecycle.training.averaging import Average
from safelight.lifecycle.training.checkpoint import load_checkpoint, restore, save_checkpoint, snapshot
from safelight.lifecycle.training.optimizer import new_optimizers, set_rates
from safelight.lifecycle.training.rates import Until, rate_factor, shared_progress
from safelight.lifecycle.training.seeds import seed_of

STYLES = list(STYLE_WORDS)


class Decoding(nn.Module):
    """The decoder alone, as one module for several processes to share."""

    def __init__(self, network: AutoencoderKL) -> None:
        super().__init__()
        self.network = network
        for part in (network.encoder, network.quant_conv):
            assert part is not None
            part.requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        """(b, c, h, w) -> images (b, 3, height, width)."""
        return self.network.decode(latents).sample  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]


def train_decoder(recipe: MiniRecipe, artwork: Path, out: Path, denoiser: MiniDenoiser, *, until: Until) -> None:
    """Train the decoder of `out`/vae, resuming from `out`/decoder.pt, and write it back there."""
    how = recipe.decoder
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(out))
    accelerator.init_trackers("decoder")
    pictures, made = Pictures(recipe, artwork, out), out / "made.npz"
    if not made.exists():
        maker = LatentMaker(
            recipe, denoiser.eval().requires_grad_(False), CLIPTokenizer.from_pretrained(out / "tokenizer")
        )
        make_latents(maker, pictures, accelerator, made)
    batches = DecoderBatches(recipe, pictures, artwork, made)
    decoding = Decoding(AutoencoderKL.from_pretrained(out / "vae"))
    discriminator = Discriminator(
        styles=len(STYLES), width=how.discriminator_width, norm_groups=recipe.autoencoder.norm_groups
    )
    for part in (decoding, discriminator):
        part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizers = [*optimizers_of(decoding, how, 1.0), *optimizers_of(discriminator, how, how.discriminator_factor)]
    average = Average(decoding.network, how.ema)
    model, telling = accelerator.prepare(decoding, discriminator)
    step, seconds = 0, 0.0
    if state := load_checkpoint(out / "decoder.pt"):
        step, seconds = restore(state, decoding.network, average, optimizers)
        discriminator.load_state_dict(state["discriminator"])
    began = saved = time.time()

    def save() -> None:
        state = snapshot(step, seconds + time.time() - began, decoding.network, average, optimizers)
        save_checkpoint(out / "decoder.pt", state | {"discriminator": discriminator.state_dict()})

    while (progress := shared_progress(accelerator, until, step, began)) < 1:
        set_rates(optimizers, rate_factor(step, warmup=30, progress=progress, cooldown=how.cooldown))
        seed = seed_of(how.seed, step, accelerator.process_index)
        batch = batches.draw(seed, how.batch // accelerator.num_processes)
        outputs = model(batch.latents)
        parts = picture_losses(batch.images, outputs) | {"slope": slope_loss(batch.images, outputs)}
        parts["hinge"] = hinge_loss(telling, batch.images, outputs, batch.styles)
        accelerator.backward(parts["hinge"])
        errors = picture_loss(parts, recipe.autoencoder) + how.slope_weight * parts["slope"]
        scores = discriminator(outputs)[torch.arange(len(outputs)), batch.styles]
        outputs.backward(slope_with(outputs, errors, scores, how.sharpness * min(1.0, step / how.sharp_after)))
        for part in (model, telling):
            accelerator.clip_grad_norm_(part.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
        step += 1
        if step % 50 == 0:
            numbers = {name: part.item() for name, part in parts.items()}
            accelerator.log(numbers, step=step)
            text = "  ".join(f"{name} {number:.4f}" for name, number in numbers.items())
            accelerator.print(f"{seconds + time.time() - began:6.0f} s  step {step}  {text}", flush=True)
        if accelerator.is_main_process and time.time() - saved > 60:
            save()
            saved = time.time()
    if accelerator.is_main_process:
        save()
        with average.applied():
            decoding.network.to(memory_format=torch.contiguous_format).save_pretrained(out / "vae")  # pyright: ignore[reportCallIssue]
        # A resumed run makes new latents with its current denoiser.
        made.unlink()
    accelerator.end_training()


def optimizers_of(part: nn.Module, how: DecoderRecipe, factor: float) -> list[Optimizer]:
    return new_optimizers(
        part,
        muon_rate=factor * how.muon_rate,
        adam_rate=factor * how.adam_rate,
        weight_decay=0,
        is_matrix=is_inner_convolution,
    )


class LatentMaker:
    """Makes latents with the denoiser's errors: real ones, noised to some level and denoised again."""

    def __init__(self, recipe: MiniRecipe, denoiser: MiniDenoiser, tokenizer: CLIPTokenizer) -> None:
        self.recipe, self.denoiser, self.tokenizer = recipe, denoiser, tokenizer
        self.levels = MiniNoiseLevels(recipe.denoiser.snr_gamma)

    def __call__(self, pictures: Pictures, views: list[int], *, seed: int) -> Tensor:
        """Denoised latents (b, c, h, w) of these views; all randomness depends on the seed."""
        generator = torch.Generator().manual_seed(seed)
        real = pictures.latents[views].float()
        noise = torch.randn(real.shape, generator=generator)
        starts = torch.randint(*self.recipe.decoder.levels, (len(views),), generator=generator)
        return self.denoise(real, noise, starts, [pictures.plain_caption(view) for view in views])

    @torch.no_grad()
    def denoise(self, latents: Tensor, noise: Tensor, starts: Tensor, captions: list[str]) -> Tensor:
        """Noise latents (b, c, h, w) to timesteps `starts` (b,), and denoise them by DDIM with the usual guidance."""
        how, signal, sigma = self.recipe.decoder, self.levels.signal, self.levels.noise
        x = at(signal, starts) * latents + at(sigma, starts) * noise
        for number in range(how.steps):
            now, then = (starts * (how.steps - passed) // how.steps for passed in (number, number + 1))
            v = self.guided(x, now, captions)
            clean = at(signal, now) * x - at(sigma, now) * v
            noisy = at(sigma, now) * x + at(signal, now) * v
            x = clean if number == how.steps - 1 else at(signal, then) * clean + at(sigma, then) * noisy
        return x

    def guided(self, x: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
        """v (b, c, h, w) with classifier-free guidance and its rescaling (arXiv:2305.08891); timesteps (b,)."""
        guidance, rescale = (float(self.recipe.defaults[name]) for name in ("guidance", "guidance_rescale"))
        texts = [""] * len(captions) + captions
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        both = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
        uncond, cond = self.denoiser(ids, both, timesteps.repeat(2)).chunk(2)
        v = uncond + guidance * (cond - uncond)
        ratio = cond.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True)
        return rescale * ratio * v + (1 - rescale) * v


def make_latents(maker: LatentMaker, pictures: Pictures, accelerator: Accelerator, path: Path) -> None:
    """Fill `path` with views and the latents that the denoiser makes of them; every process does its share."""
    how = maker.recipe.decoder
    views = pictures.choose(random.Random(how.seed), how.made)
    latents = torch.zeros(how.made, *pictures.latents.shape[1:])
    chunks = batches_of(list(range(how.made)), 16)
    began = time.time()
    for number, chunk in enumerate(chunks[accelerator.process_index :: accelerator.num_processes], start=1):
        latents[chunk] = maker(pictures, [views[index] for index in chunk], seed=seed_of(how.seed, chunk[0]))
        if number % 25 == 0:
            done = number * 16 * accelerator.num_processes
            accelerator.print(f"{time.time() - began:6.0f} s  {done} of {how.made} latents made", flush=True)
    # Each process filled its own rows and left zeros elsewhere.
    latents = accelerator.reduce(latents, "sum")
    if accelerator.is_main_process:
        with path.with_suffix(".partial").open("wb") as file:
            np.savez(file, views=np.array(views), latents=latents.half().numpy())  # pyright: ignore[reportAttributeAccessIssue]
        path.with_suffix(".partial").rename(path)
    accelerator.wait_for_everyone()


@dataclass(frozen=True, slots=True)
class DecoderBatch:
    """The decoder's inputs and targets."""

    views: list[int]
    latents: Tensor
    images: Tensor
    styles: Tensor
    """Indices into STYLES."""


class DecoderBatches:
    """Latents made by the denoiser, mixed with real ones with noise."""

    def __init__(self, recipe: MiniRecipe, pictures: Pictures, artwork: Path, made: Path) -> None:
        self.recipe, self.pictures = recipe, pictures
        self.artwork: NDArray[np.uint8] = np.load(artwork / "pictures.npy", mmap_mode="r")
        with np.load(made) as file:
            self.views: list[int] = file["views"].tolist()
            self.made = torch.from_numpy(file["latents"])

    def draw(self, seed: int, count: int) -> DecoderBatch:
        """Sample a batch; it depends only on the seed."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(self.views), (count,), generator=generator)
        views = [self.views[number] for number in chosen.tolist()]
        amount = self.recipe.autoencoder.latent_noise * torch.rand(count, 1, 1, 1, generator=generator)
        real = self.pictures.latents[views].float()
        real = real + amount * torch.randn(real.shape, generator=generator)
        is_real = torch.rand(count, 1, 1, 1, generator=generator) < self.recipe.decoder.real_share
        latents = torch.where(is_real, real, self.made[chosen].float())
        styles = [STYLES.index(self.pictures.subject(view).style) for view in views]
        return DecoderBatch(
            views,
            latents.contiguous(memory_format=torch.channels_last),
            torch.stack([self.image(view) for view in views]),
            torch.tensor(styles),
        )

    def image(self, view: int) -> Tensor:
        """The picture of a view, (3, h, w) in -1..1."""
        row, background = self.pictures.views[view]
        return on_background(self.artwork[row], BACKGROUNDS.get(background or "", WHITE))


def slope_loss(images: Tensor, outputs: Tensor) -> Tensor:
    """Absolute error of the differences of neighbouring 4x4 means of (b, 3, h, w): the unevenness of flat areas."""
    errors = F.avg_pool2d(outputs - images, 4)
    return errors.diff(dim=-1).abs().mean() + errors.diff(dim=-2).abs().mean()


def at(levels: Tensor, timesteps: Tensor) -> Tensor:
    """The levels (n,) of timesteps (b,), as (b, 1, 1, 1)."""
    return levels[timesteps].view(-1, 1, 1, 1)
