"""The decoder, trained on what the denoiser makes of latents.

    latents -> noised to some level -> walked back in a few guided steps of their caption -> decoder -> the picture

The autoencoder's own training shows its decoder latents with white noise on them. What a denoiser leaves wrong is of
another kind: flat areas are slowly uneven, white is not white. A latent that was noised not too far and walked back is
still of the same picture and has such faults, so there is a right answer to learn. Latents stay what they were, and
with them all that knows them: the denoiser, LoRAs.
"""

import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from safelight.training.autoencoder import (
    BACKGROUNDS,
    WHITE,
    is_inner_convolution,
    on_background,
    picture_loss,
    picture_losses,
)
from safelight.training.averaging import Average
from safelight.training.checkpoint import load_checkpoint, restore, save_checkpoint, snapshot
from safelight.training.denoiser import Denoiser, NoiseLevels
from safelight.training.mini import MiniRecipe
from safelight.training.optimizer import new_optimizers, set_rates
from safelight.training.pictures import Pictures
from safelight.training.rates import Until, agreed_progress, rate_factor
from safelight.training.seeds import seed_of


class Decoding(nn.Module):
    """The decoder alone, as one module for several processes to share."""

    def __init__(self, network: AutoencoderKL) -> None:
        super().__init__()
        self.network = network
        for part in (network.encoder, network.quant_conv):
            assert part is not None
            part.requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]


def train_decoder(recipe: MiniRecipe, artwork: Path, out: Path, denoiser: Denoiser, *, until: Until) -> None:
    """Train the decoder of `out`/vae, resuming from `out`/decoder.pt, and write it back there."""
    how = recipe.decoder
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(out))
    accelerator.init_trackers("decoder")
    pictures = Pictures(recipe, artwork, out)
    artworks: NDArray[np.uint8] = np.load(artwork / "pictures.npy", mmap_mode="r")
    maker = Maker(recipe, denoiser.eval().requires_grad_(False), CLIPTokenizer.from_pretrained(out / "tokenizer"))
    network = AutoencoderKL.from_pretrained(out / "vae")
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model = Decoding(network)
    optimizers = new_optimizers(
        network, muon_rate=how.muon_rate, adam_rate=how.adam_rate, weight_decay=0, is_matrix=is_inner_convolution
    )
    average = Average(network, how.ema)
    model = accelerator.prepare(model)
    step, seconds = 0, 0.0
    if state := load_checkpoint(out / "decoder.pt"):
        step, seconds = restore(state, network, average, optimizers)
    began = saved = time.time()
    while (progress := agreed_progress(accelerator, until, step, began)) < 1:
        set_rates(optimizers, rate_factor(step, warmup=30, progress=progress, cooldown=how.cooldown))
        seed = seed_of(how.seed, step, accelerator.process_index)
        views = pictures.choose(random.Random(seed), how.batch // accelerator.num_processes)
        latents = maker(pictures, views, seed=seed)
        images = torch.stack([picture_of(pictures, artworks, view) for view in views])
        outputs = model(latents)
        parts = picture_losses(images, outputs) | {"slope": slope_loss(images, outputs)}
        accelerator.backward(picture_loss(parts, recipe.autoencoder) + how.slope_weight * parts["slope"])
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
        step += 1
        if step % 50 == 0:
            numbers = {name: part.item() for name, part in parts.items()}
            accelerator.log(numbers, step=step)
            shown = "  ".join(f"{name} {number:.4f}" for name, number in numbers.items())
            accelerator.print(f"{seconds + time.time() - began:6.0f} s  step {step}  {shown}", flush=True)
        if accelerator.is_main_process and time.time() - saved > 60:
            save_checkpoint(
                out / "decoder.pt", snapshot(step, seconds + time.time() - began, network, average, optimizers)
            )
            saved = time.time()
    if accelerator.is_main_process:
        save_checkpoint(out / "decoder.pt", snapshot(step, seconds + time.time() - began, network, average, optimizers))
        with average.applied():
            network.to(memory_format=torch.contiguous_format).save_pretrained(out / "vae")  # pyright: ignore[reportCallIssue]
    accelerator.end_training()


class Maker:
    """What the decoder is shown: latents as the denoiser leaves them and, now and then, real ones with noise."""

    def __init__(self, recipe: MiniRecipe, denoiser: Denoiser, tokenizer: CLIPTokenizer) -> None:
        self.recipe, self.denoiser, self.tokenizer = recipe, denoiser, tokenizer
        self.levels = NoiseLevels(recipe.denoiser.snr_gamma)

    def __call__(self, pictures: Pictures, views: list[int], *, seed: int) -> Tensor:
        """Latents of these views; everything random follows from the seed."""
        how, count = self.recipe.decoder, len(views)
        generator = torch.Generator().manual_seed(seed)
        real = pictures.latents[views].float()
        noise = torch.randn(real.shape, generator=generator)
        first, last = how.levels
        starts = torch.randint(first, last, (count,), generator=generator)
        made = self.walk_back(real, noise, starts, [pictures.plain_caption(view) for view in views])
        amount = self.recipe.autoencoder.latent_noise * torch.rand(count, 1, 1, 1, generator=generator)
        is_real = torch.rand(count, 1, 1, 1, generator=generator) < how.real_share
        return torch.where(is_real, real + amount * noise, made).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def walk_back(self, latents: Tensor, noise: Tensor, starts: Tensor, captions: list[str]) -> Tensor:
        """Noised to these timesteps, and denoised again by DDIM with the guidance that pictures are drawn with."""
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
        """v, with guidance and its rescaling (arXiv:2305.08891)."""
        guidance, rescale = (float(self.recipe.defaults[name]) for name in ("guidance", "guidance_rescale"))
        texts = [""] * len(captions) + captions
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        both = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
        without, told = self.denoiser(ids, both, timesteps.repeat(2)).chunk(2)
        v = without + guidance * (told - without)
        ratio = told.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True)
        return rescale * ratio * v + (1 - rescale) * v


def slope_loss(images: Tensor, outputs: Tensor) -> Tensor:
    """Absolute error of what neighbouring 4x4 means differ by: an area that should be even rises and falls."""
    errors = F.avg_pool2d(outputs - images, 4)
    return errors.diff(dim=-1).abs().mean() + errors.diff(dim=-2).abs().mean()


def at(levels: Tensor, timesteps: Tensor) -> Tensor:
    return levels[timesteps].view(-1, 1, 1, 1)


def picture_of(pictures: Pictures, artworks: NDArray[np.uint8], view: int) -> Tensor:
    row, background = pictures.views[view]
    return on_background(artworks[row], BACKGROUNDS.get(background or "", WHITE))
