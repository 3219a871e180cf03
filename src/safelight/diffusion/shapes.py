"""Tensor shapes by name; the slow test lane checks them at run time.

b images in a batch, k steps of history (newest first), c channels, h and w latent height and width.
"""

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b c h w"]
Latent = Float[Tensor, "c h w"]
History = Float[Tensor, "b k c h w"]
Tiles = Float[Tensor, "n c y x"]
"""Tiles of latents; the tiles of each batch row follow each other."""
Masks = Float[Tensor, "b 1 h w"]
Mask = Float[Tensor, "1 h w"]
PerRow = Float[Tensor, " b"]
PerRowHistory = Float[Tensor, "b k"]
