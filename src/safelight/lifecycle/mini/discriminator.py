"""A patch discriminator that separates artwork from the decoder's output.

A decoder trained on pixel errors alone outputs the mean of all pictures that a latent could stand for: edges are soft,
fine detail is lost, flat areas are uneven. The adversarial loss makes it choose one (arXiv:1611.07004; the autoencoder
of arXiv:2112.10752 is trained in this way). Artwork of another style counts as false too, as in arXiv:1605.05396.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Pictures (count, 3, height, width) in -1..1 to scores (count, styles, height/8, width/8).

    A score above 0 classifies a patch of 38x38 pixels as artwork of that style.
    """

    def __init__(self, *, styles: int, width: int, norm_groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.layers = nn.Sequential(
            nn.LeakyReLU(0.2),
            *level(width, 2 * width, norm_groups, stride=2),
            *level(2 * width, 4 * width, norm_groups, stride=2),
            *level(4 * width, 4 * width, norm_groups, stride=1),
        )
        self.conv_out = nn.Conv2d(4 * width, styles, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv_out(self.layers(self.conv_in(images)))


def level(inner: int, outer: int, norm_groups: int, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inner, outer, 2 + stride, stride=stride, padding=1)
    return [convolution, nn.GroupNorm(norm_groups, outer), nn.LeakyReLU(0.2)]


def hinge_loss(discriminator: nn.Module, images: Tensor, outputs: Tensor, styles: Tensor) -> Tensor:
    """The discriminator's loss: artwork should score above 1 in its style (count,) and below -1 in others; the
    decoder's outputs below -1 in their style.
    """
    artwork, drawn = discriminator(torch.cat([images, outputs.detach()])).chunk(2)
    own = F.one_hot(styles, artwork.shape[1]).bool()
    false = F.relu(1 + artwork[~own]).mean() + F.relu(1 + drawn[own]).mean()
    return F.relu(1 - artwork[own]).mean() + false / 2


def slope_with(outputs: Tensor, errors: Tensor, scores: Tensor, share: float) -> Tensor:
    """The gradient at `outputs` (b, 3, h, w) that lowers `errors`, plus one that raises `scores`, `share` times its
    norm; errors are a scalar, scores may have any shape."""
    (errors_slope,) = torch.autograd.grad(errors, outputs)
    (scores_slope,) = torch.autograd.grad(scores.mean(), outputs)
    return errors_slope - share * errors_slope.norm() / scores_slope.norm().clamp_min(1e-12) * scores_slope
