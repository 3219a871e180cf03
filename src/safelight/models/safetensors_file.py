"""Weights are read from safetensors and from nothing else: every other format can carry code.

The header is checked before a byte of it is trusted: format description at github.com/huggingface/safetensors.
"""

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.errors import CorruptModel, UnsafeFile

if TYPE_CHECKING:
    import torch

NETWORK, TEXT_ENCODER = "diffusion_pytorch_model", "model"
"""What weight files are called in diffusers' and in transformers' folders, without suffix and variant."""

MAX_HEADER_BYTES = 100 * 2**20
"""The format's own limit."""
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
VARIANTS = ("", ".fp16")


def read_header(path: Path) -> dict[str, Any]:
    """Names, shapes and offsets, checked against the file's size.

    Raises:
        UnsafeFile: the file is a pickle or a zip, whatever its name says.
        CorruptModel: it is cut off, or not safetensors at all.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise not_safetensors(path, head, size)
            text = file.read(length)
    except OSError as error:
        raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None
    try:
        header: dict[str, Any] = json.loads(text)
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError):
        raise CorruptModel(f"{path} has a header that is not a safetensors header") from None
    promised = 8 + length + max(ends, default=0)
    if size != promised:
        how = "is cut off" if size < promised else "is longer than it should be"
        raise CorruptModel(f"{path} {how}: its header promises {promised} bytes, it has {size}; download it again")
    return header


def not_safetensors(path: Path, head: bytes, size: int) -> CorruptModel | UnsafeFile:
    """Read as a safetensors length, the first bytes of a pickle or a zip are far beyond any file's size."""
    pickles = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
    if head.startswith((*pickles, b"PK\x03\x04")):
        return UnsafeFile(f"{path} is a pickle, which can run code when opened; only safetensors weights are loaded")
    return CorruptModel(f"{path} is not a safetensors file, or is cut off in its header ({size} bytes)")


def load_weights(folder: Path, stem: str) -> "dict[str, torch.Tensor]":
    """The component's tensors, memory-mapped; `stem` is NETWORK or TEXT_ENCODER.

    Raises:
        UnsafeFile: the weights are there only in a format that can carry code.
        CorruptModel: they are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: "dict[str, torch.Tensor]" = {}
    for path in weight_files(folder, stem):
        read_header(path)
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise CorruptModel(f"{path} is damaged: {error}") from None
    return tensors


def weight_files(folder: Path, stem: str) -> list[Path]:
    """One file, or the shards an index names; else the same of the fp16 variant."""
    for variant in VARIANTS:
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return shards(index)
    unsafe = sorted(path.name for path in folder.glob(f"{stem}*") if path.suffix in PICKLE_SUFFIXES)
    if unsafe:
        raise UnsafeFile(
            f"{folder} has weights only as {unsafe[0]}, which can run code when opened; convert it to safetensors"
        )
    raise CorruptModel(f"{folder} has no {stem}.safetensors")


def shards(index: Path) -> list[Path]:
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CorruptModel(f"{index} is not a shard index") from None
    for name in sorted(names):
        # A name with a slash in it would reach outside the folder.
        if Path(name).name != name or "\0" in name or not (index.parent / name).is_file():
            raise CorruptModel(f"{index} names {name[:80]!r}, which is not a file beside it")
    return [index.parent / name for name in sorted(names)]
