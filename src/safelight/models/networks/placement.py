"""The device and dtype a network runs in, chosen by what the hardware computes fast."""

from dataclasses import dataclass
from typing import Literal

import torch

from safelight.errors import UnsupportedOption


@dataclass(frozen=True, slots=True)
class Placement:
    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}"


def choose_placement(
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
) -> Placement:
    """Return the requested device, or the best available; half precision only where it is fast.

    A CPU without the instructions runs half-precision convolutions up to 34 times slower than float32 ones.
    """
    chosen = best_device() if device == "auto" else device
    if chosen == "cuda" and not torch.cuda.is_available():
        raise UnsupportedOption("device", "no CUDA device is visible to PyTorch here; `safelight doctor` shows why")
    if chosen == "mps" and not torch.backends.mps.is_available():
        raise UnsupportedOption("device", "this PyTorch has no Metal device (mps)")
    fast = fast_dtypes(chosen)
    if dtype == "auto":
        return Placement(torch.device(chosen), torch.float32 if chosen == "cpu" else fast[0])
    wanted: torch.dtype = getattr(torch, dtype)
    if wanted not in fast:
        raise UnsupportedOption("dtype", f"{dtype} is many times slower than float32 on this {chosen}; leave it out")
    return Placement(torch.device(chosen), wanted)


def best_device() -> Literal["cpu", "cuda", "mps"]:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def fast_dtypes(device: str) -> list[torch.dtype]:
    """Return the dtypes the device computes at full speed, best first."""
    if device == "cuda":
        return [torch.float16, torch.bfloat16, torch.float32]
    if device == "mps":
        return [torch.float16, torch.float32]
    fast = [torch.float32]
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():  # pyright: ignore[reportPrivateUsage]
        fast.append(torch.bfloat16)
    if torch.cpu._is_amx_fp16_supported():  # pyright: ignore[reportPrivateUsage]
        fast.append(torch.float16)
    return fast
