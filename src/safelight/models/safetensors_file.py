"""Weights are read from safetensors and from nothing else: every other format can carry code.

The header is checked before a byte of it is trusted: format description at github.com/huggingface/safetensors.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from safelight.errors import CorruptModel, UnsafeFile

MAX_HEADER_BYTES = 100 * 2**20
"""The format's own limit."""
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def read_header(path: Path) -> dict[str, Any]:
    """Names, shapes and offsets, checked against the file's size.

    Raises:
        UnsafeFile: the file is a pickle or a zip, whatever its name says.
        CorruptModel: it is cut off, or not safetensors at all.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] in (b"PK\x03\x04", b"\x80\x02}q") or head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
            raise UnsafeFile(f"{path} is a pickle, which can run code when opened; only safetensors weights are loaded")
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CorruptModel(f"{path} is not a safetensors file, or is cut off in its header ({size} bytes)")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise CorruptModel(f"{path} has a header that is not a safetensors header") from None
    if max(ends, default=0) != size - 8 - length:
        raise CorruptModel(f"{path} is cut off: its header promises {8 + length + max(ends, default=0)} bytes, it has {size}")
    return header


def load_weights(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """The component's tensors, memory-mapped; `stem` is `model` or `diffusion_pytorch_model`.

    Takes one file, its fp16 variant, or the shards an index names, in this order.
    """
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder, stem):
        read_header(path)
        tensors |= load_file(path)
    return tensors


def weight_files(folder: Path, stem: str) -> list[Path]:
    for variant in ("", ".fp16"):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return shards(index)
    unsafe = sorted(path.name for path in folder.glob(f"{stem}*") if path.suffix in PICKLE_SUFFIXES)
    if unsafe:
        raise UnsafeFile(
            f"{folder} has weights only as {unsafe[0]}, a format that can run code when opened; convert it to safetensors"
        )
    raise CorruptModel(f"{folder} has no {stem}.safetensors")


def shards(index: Path) -> list[Path]:
    try:
        weight_map: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorruptModel(f"{index} is not a shard index") from None
    # A name with a slash in it would reach outside the folder.
    if bad := [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]:
        raise CorruptModel(f"{index} names {bad[0]!r}, which is not a file beside it")
    return [index.parent / name for name in names]
