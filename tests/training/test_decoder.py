"""The decoder's own training: what it is shown, and that nothing but the decoder changes."""

from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from tests.training.test_pictures import make
from torch import Tensor, nn
from transformers import CLIPTokenizer

from safelight.models.catalogue import MINI as SHIPPED
from safelight.training.checkpoint import load_checkpoint
from safelight.training.decoder import Maker, train_decoder
from safelight.training.denoiser import NoiseLevels
from safelight.training.mini import MINI
from safelight.training.networks import new_autoencoder
from safelight.training.rates import Until


class Oracle(nn.Module):
    """Knows the latents that everything was noised from."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents
        self.levels = NoiseLevels(5.0)

    def forward(self, ids: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = (level[timesteps].view(-1, 1, 1, 1) for level in (self.levels.signal, self.levels.noise))
        latents = self.latents.repeat(len(noisy) // len(self.latents), 1, 1, 1)
        return signal * (noisy - signal * latents) / sigma - sigma * latents


def test_a_denoiser_without_fault_walks_back_to_where_it_came_from() -> None:
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    maker = Maker(MINI, Oracle(latents), CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer"))  # pyright: ignore[reportArgumentType]
    found = maker.walk_back(latents, noise, torch.tensor([130, 400, 640]), ["a red apple"] * 3)
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=0)


def test_the_decoder_changes_and_nothing_else_and_a_run_goes_on(tmp_path: Path) -> None:
    make(tmp_path)
    rows = len(np.load(tmp_path / "latents.npy")) // 2
    np.save(tmp_path / "pictures.npy", np.random.default_rng(1).integers(0, 256, (rows, 16, 16, 4), np.uint8))
    CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    new_autoencoder(MINI).save_pretrained(tmp_path / "vae")
    before = AutoencoderKL.from_pretrained(tmp_path / "vae").state_dict()
    for steps in (2, 3):
        train_decoder(MINI, tmp_path, tmp_path, Oracle(torch.zeros(8, 4, 2, 2)), until=Until(steps=steps))  # pyright: ignore[reportArgumentType]
        state = load_checkpoint(tmp_path / "decoder.pt")
        assert state is not None
        assert state["step"] == steps
    after = AutoencoderKL.from_pretrained(tmp_path / "vae").state_dict()
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder", "post_quant_conv"}
