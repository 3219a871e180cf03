"""The decoder's own training: what it is shown, and that nothing but the decoder changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from tests.lifecycle.mini.test_pictures import make
from torch import Tensor, nn
from transformers import CLIPTokenizer

from safelight.lifecycle.mini.autoencoder import BACKGROUNDS, WHITE, is_inner_convolution, on_background
from safelight.lifecycle.mini.decoder import STYLES, DecoderBatches, LatentMaker, train_decoder
from safelight.lifecycle.mini.denoiser import MiniNoiseLevels
from safelight.lifecycle.mini.discriminator import Discriminator, hinge_loss, slope_with
from safelight.lifecycle.mini.mini import MINI, DecoderRecipe
from safelight.lifecycle.mini.networks import new_autoencoder
from safelight.lifecycle.mini.pictures import Pictures
from safelight.lifecycle.training.checkpoint import load_checkpoint
from safelight.lifecycle.training.optimizer import new_optimizers
from safelight.lifecycle.training.rates import Until
from safelight.models.checkpoints.catalogue import MINI as SHIPPED


class Oracle(nn.Module):
    """Knows the latents that everything was noised from."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents
        self.levels = MiniNoiseLevels(5.0)

    def forward(self, ids: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = (level[timesteps].view(-1, 1, 1, 1) for level in (self.levels.signal, self.levels.noise))
        latents = self.latents.repeat(len(noisy) // len(self.latents), 1, 1, 1)
        return signal * (noisy - signal * latents) / sigma - sigma * latents


def small_run(folder: Path) -> tuple[Pictures, NDArray[np.uint8]]:
    """Random pictures of 16x16 and their latents."""
    make(folder)
    rows = len(np.load(folder / "latents.npy")) // 2
    artwork = np.random.default_rng(1).integers(0, 256, (rows, 16, 16, 4), np.uint8)
    np.save(folder / "pictures.npy", artwork)
    return Pictures(MINI, folder, folder), artwork


def test_a_denoiser_without_fault_walks_back_to_where_it_came_from() -> None:
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    maker = LatentMaker(MINI, Oracle(latents), CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer"))  # pyright: ignore[reportArgumentType]
    found = maker.denoise(latents, noise, torch.tensor([130, 400, 640]), ["a red apple"] * 3)
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=0)


def test_the_decoder_changes_and_nothing_else_and_a_run_goes_on(tmp_path: Path) -> None:
    small_run(tmp_path)
    CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    new_autoencoder(MINI).save_pretrained(tmp_path / "vae")
    before = AutoencoderKL.from_pretrained(tmp_path / "vae").state_dict()
    recipe = replace(MINI, decoder=DecoderRecipe(made=8))
    for steps in (2, 3):
        train_decoder(recipe, tmp_path, tmp_path, Oracle(torch.zeros(8, 4, 2, 2)), until=Until(steps=steps))  # pyright: ignore[reportArgumentType]
        state = load_checkpoint(tmp_path / "decoder.pt")
        assert state is not None
        assert state["step"] == steps
        assert not (tmp_path / "made.npz").exists()
    after = AutoencoderKL.from_pretrained(tmp_path / "vae").state_dict()
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_lessons_are_latents_made_and_now_and_then_real_ones(tmp_path: Path) -> None:
    pictures, artwork = small_run(tmp_path)
    made = torch.full((6, *pictures.latents.shape[1:]), 9.0)
    np.savez(tmp_path / "made.npz", views=np.arange(6), latents=made.half().numpy())
    lessons = DecoderBatches(MINI, pictures, tmp_path, tmp_path / "made.npz")
    lesson, again = (lessons.draw(seed=5, count=400) for _ in range(2))
    assert again.views == lesson.views
    torch.testing.assert_close(again.latents, lesson.latents)
    is_made = (lesson.latents == 9).flatten(1).all(1)
    assert 0.6 < is_made.float().mean() < 0.8
    noise = (lesson.latents - pictures.latents[lesson.views].float())[~is_made]
    assert noise.abs().mean() < MINI.autoencoder.latent_noise
    for view, image, style in list(zip(lesson.views, lesson.images, lesson.styles, strict=True))[:20]:
        assert STYLES[style] == pictures.subject(view).style
        row, background = pictures.views[view]
        torch.testing.assert_close(image, on_background(artwork[row], BACKGROUNDS[background] if background else WHITE))


def test_a_discriminator_tells_soft_from_sharp_and_one_style_from_another() -> None:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    discriminator = Discriminator(styles=2, width=8, norm_groups=4)
    optimizers = new_optimizers(
        discriminator, muon_rate=0.01, adam_rate=1e-3, weight_decay=0, is_matrix=is_inner_convolution
    )
    styles = torch.tensor([0, 1] * 4)
    # Style 0 is bright and style 1 dark, both with sharp edges; what was drawn has soft ones.
    bright = torch.where(styles.view(-1, 1, 1, 1) == 0, 1.0, -1.0)

    def sharp() -> Tensor:
        return bright * nn.functional.interpolate(torch.rand(8, 3, 8, 8, generator=generator), 32)

    def soft(pictures: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pictures, 5, stride=1, padding=2)

    for _ in range(150):
        loss = hinge_loss(discriminator, sharp(), soft(sharp()), styles)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    pictures = sharp()
    every = torch.arange(8)
    artwork, softened = (discriminator(shown).mean((2, 3)) for shown in (pictures, soft(pictures)))
    assert (artwork[every, styles] > 0).all()
    assert (artwork[every, 1 - styles] < 0).all()
    assert (softened[every, styles] < 0).all()


def test_what_is_learnt_from_scores_is_a_share_of_what_is_learnt_from_errors() -> None:
    outputs = torch.zeros(2, 3, requires_grad=True)
    errors, scores = (outputs - 1).square().sum(), 100 * outputs[:, 0]
    alone = slope_with(outputs, errors, scores, share=0)
    torch.testing.assert_close(alone, torch.full((2, 3), -2.0))
    both = slope_with(outputs, (outputs - 1).square().sum(), 100 * outputs[:, 0], share=0.5)
    added = both - alone
    assert (added[:, 0] < 0).all()
    assert not added[:, 1:].any()
    torch.testing.assert_close(added.norm(), 0.5 * alone.norm())
