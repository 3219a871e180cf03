"""Noise that depends on the seed alone: drawn on the CPU in float32, wherever the network runs."""

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    """One generator per picture, so neighbours in a batch never change what it draws."""
    return torch.Generator("cpu").manual_seed(seed)


def draw(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """The next unit Gaussian of this picture; the numbers diffusers' `randn_tensor` gives for the same generator."""
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
