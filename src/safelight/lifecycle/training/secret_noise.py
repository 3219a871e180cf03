"""Unit Gaussians from the system's randomness, for noise that must stay secret.

torch's CPU generator uses 32 bits of a seed: an attacker can try them all and subtract the noise. Here every two
numbers come from 128 bits of `os.urandom` (the Box-Muller transform); nothing is seeded, stored, or drawn twice.
"""

import os

import numpy as np
import torch
from torch import Tensor


def secret_gaussians(count: int) -> Tensor:
    """(count,) in float64, on the CPU. None exceeds 9.5, which a true Gaussian does once in 10^20 draws."""
    pairs = -(-count // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs)
    first, second = (bits.astype(np.float64) + 0.5) * 2.0**-64
    lengths, angles = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    return torch.from_numpy(np.concatenate([lengths * np.cos(angles), lengths * np.sin(angles)])[:count])
