"""Textual inversions of random vectors, in every layout that files come in."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def vectors(seed: int, *shape: int) -> Tensor:
    """Large enough to show: an embedding of these tiny text encoders is about 0.1."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_a1111(path: Path, *, num: int = 2, width: int = 32, seed: int = 1) -> Path:
    return write(path, {"emb_params": vectors(seed, num, width)})


def write_diffusers(path: Path, *, num: int | None = None, width: int = 32, seed: int = 2) -> Path:
    """`num` None: one vector, without a row for it."""
    return write(path, {f"<{path.stem}>": vectors(seed, *([width] if num is None else [num, width]))})


def write_sdxl(path: Path, *, num: int = 3, widths: tuple[int, int] = (32, 24), seed: int = 3) -> Path:
    return write(path, {"clip_g": vectors(seed, num, widths[1]), "clip_l": vectors(seed + 1, num, widths[0])})


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
