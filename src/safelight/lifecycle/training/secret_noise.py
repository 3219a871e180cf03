"""Unit Gaussians out of the system's own randomness, for noise that nobody may guess.

torch's CPU generator heeds 32 bits of a seed: who tries them all finds the noise, and takes it off again. Here every
two numbers are made of 128 bits from `os.urandom` (the Box-Muller transform); nothing is seeded, kept, or drawn twice.
"""

import os

import numpy as np
import torch
from torch import Tensor


def secret_gaussians(count: int) -> Tensor:
    """(count,) in float64, on the CPU. None is past 9.5, where a true Gaussian is once in 10^20 draws."""
    pairs = -(-count // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs)
    first, second = (bits.astype(np.float64) + 0.5) * 2.0**-64
    lengths, angles = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    return torch.from_numpy(np.concatenate([lengths * np.cos(angles), lengths * np.sin(angles)])[:count])
