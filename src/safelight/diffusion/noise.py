"""Noise that depends on the seed alone: generated on the CPU in float32, whatever the device of the network."""

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    """Return a generator for one image, so that its noise does not depend on its batch."""
    return torch.Generator("cpu").manual_seed(seed)


def draw(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Return the next standard normal tensor, of any shape; equal to diffusers' `randn_tensor` with this generator."""
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
