"""The autoencoder recipe: whitening changes the latents and nothing else."""

import torch

from safelight.lifecycle.mini.autoencoder import fold_whitening
from safelight.lifecycle.mini.mini import MINI
from safelight.lifecycle.mini.networks import new_autoencoder


def test_whitening_is_folded_in_exactly() -> None:
    torch.manual_seed(0)
    network = new_autoencoder(MINI).double().eval()
    images = torch.rand(6, 3, 64, 64, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        before = network.encode(images).latent_dist.mean
        points = before.permute(0, 2, 3, 1).flatten(0, 2)
        pictures = network.decode(before).sample
        fold_whitening(network, points.mean(0), points.T.cov())
        after = network.encode(images).latent_dist.mean
        whitened = after.permute(0, 2, 3, 1).flatten(0, 2)
        # The folded weights are rounded to float32, hence 1e-4.
        torch.testing.assert_close(whitened.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-4, rtol=0)
        torch.testing.assert_close(whitened.T.cov(), torch.eye(4, dtype=torch.float64), atol=1e-4, rtol=0)
        torch.testing.assert_close(network.decode(after).sample, pictures, atol=1e-4, rtol=0)
