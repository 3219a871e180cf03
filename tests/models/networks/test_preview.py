from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.models.networks.test_latents import tiny

from safelight.models.networks.latents import VAE, decode, to_pil
from safelight.models.networks.preview import SD, SDXL, Factors, factors_for, fit_factors, preview

WEIGHTS = torch.tensor([[0.10, -0.05, 0.02], [0.00, 0.08, 0.04], [-0.06, 0.03, 0.09], [0.05, 0.05, -0.07]])
BIAS = torch.tensor([0.1, -0.2, 0.05])


class Linear:
    """An autoencoder whose pictures are a matrix times the latents."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            block_out_channels=(1, 1, 1, 1),
            latent_channels=4,
            scaling_factor=0.5,
            shift_factor=None,
            latents_mean=None,
            latents_std=None,
        )
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def encode(self, x: torch.Tensor) -> SimpleNamespace:
        """Three channels are the picture's; the fourth is a function of them, but not a linear one."""
        small = torch.nn.functional.avg_pool2d(x, 8)
        mean = torch.cat([small, small.prod(dim=1, keepdim=True)], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=torch.cat([mean, mean], dim=1)))

    def decode(self, z: torch.Tensor) -> SimpleNamespace:
        colours = torch.einsum("b c h w, c r -> b r h w", 0.5 * z, WEIGHTS) + BIAS.view(1, 3, 1, 1)
        return SimpleNamespace(sample=torch.nn.functional.interpolate(colours, scale_factor=8.0))


def test_the_fit_recovers_a_known_matrix() -> None:
    factors = fit_factors(VAE(Linear()))
    assert torch.allclose(torch.tensor(factors.weights), WEIGHTS, atol=1e-5)  # float32 least squares
    assert torch.allclose(torch.tensor(factors.bias), BIAS, atol=1e-5)


def test_the_fit_is_the_same_every_time_and_leaves_torchs_generator_alone() -> None:
    vae = tiny()
    state = torch.get_rng_state()
    assert fit_factors(vae) == fit_factors(vae)
    assert torch.equal(state, torch.get_rng_state())


def test_a_preview_has_the_colours_of_the_picture() -> None:
    vae = VAE(Linear())
    latents = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(5))
    small = torch.nn.functional.avg_pool2d(decode(vae, latents), vae.scale)
    for image, expected in zip(preview(latents, fit_factors(vae)), to_pil(small), strict=True):
        difference = np.asarray(image).astype(int) - np.asarray(expected).astype(int)
        assert abs(difference).max() <= 1  # a rounding to bytes may fall the other way


@pytest.mark.parametrize(("scaling_factor", "expected"), [(0.18215, SD), (0.13025, SDXL)])
def test_stable_diffusions_factors_are_known(scaling_factor: float, expected: Factors) -> None:
    network = Linear()
    network.config.block_out_channels = [128, 256, 512, 512]
    network.config.scaling_factor = scaling_factor
    assert factors_for(VAE(network)) is expected


@pytest.mark.parametrize(
    "other", [{"scaling_factor": 0.5}, {"block_out_channels": (8, 8, 8, 8)}, {"latents_mean": (0, 0, 0, 0)}]
)
def test_any_other_autoencoder_is_fitted(other: dict[str, object]) -> None:
    network = Linear()
    network.config.__dict__.update({"block_out_channels": (128, 256, 512, 512), "scaling_factor": 0.18215} | other)
    assert factors_for(VAE(network)) not in (SD, SDXL)


def test_a_preview_is_as_small_as_its_latents_and_of_the_right_colours() -> None:
    latents = torch.zeros(2, 4, 5, 7, dtype=torch.float16)
    latents[1, 0] = 100  # far beyond white
    grey, white = preview(latents, SD)
    assert grey.size == white.size == (7, 5)
    assert grey.getpixel((0, 0)) == (128, 128, 128)
    assert white.getpixel((6, 4)) == (255, 255, 255)


def test_a_preview_of_nan_is_still_an_image() -> None:
    """A broken estimate fails the job when it is decoded; a look at it must not."""
    (image,) = preview(torch.full((1, 4, 2, 2), torch.nan), SD)
    assert image.size == (2, 2)
