"""Safetensors files with lazy reading, and writing one tensor at a time.

The file is memory-mapped, so a tensor takes no memory until it is read, and one that needs no conversion is never
copied. After conversion a tensor can be released: its pages stay in the system's cache, but not in our memory.
"""

import json
import math
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from safelight.errors import CorruptModel, StorageFailed
from safelight.models.weights.safetensors_file import DTYPES, Header, read_header
from safelight.regular_file import open_regular

TORCH_DTYPES: dict[str, torch.dtype] = {ours: getattr(torch, theirs) for ours, theirs in DTYPES.items()}
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
ALIGNMENT = 8
"""The header is padded, so that every tensor is aligned."""


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a file by name, as views that keep the file mapped while they exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header = read_header(path)
        try:
            with open_regular(path) as file:
                # A private mapping: torch needs writable memory, and writes never reach the file.
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None

    def __getitem__(self, name: str) -> Tensor:
        entry = self.header.tensors[name]
        dtype = TORCH_DTYPES[entry.dtype]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=dtype)
        if entry.begin % dtype.itemsize:  # unaligned: allowed by the format, but not by every processor
            raw = torch.frombuffer(self._bytes, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin)
            return raw.clone().view(dtype).view(entry.shape)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def release(self, tensor: Tensor) -> None:
        """Free the memory of a view (any shape) that has been copied; another read loads it from the file again."""
        first = tensor.data_ptr() - torch.frombuffer(self._bytes, dtype=torch.uint8).data_ptr()
        last = first + tensor.nbytes
        if not 0 <= first < last <= len(self._bytes):
            return  # not a view into this file
        page = mmap.PAGESIZE
        first, last = -(-first // page) * page, last // page * page
        if first < last and hasattr(self._bytes, "madvise"):
            self._bytes.madvise(mmap.MADV_DONTNEED, first, last - first)


Plan = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""The dtype and shape of each tensor to write, in order."""


def write_tensors(
    path: Path, plan: Plan, tensors: Iterable[tuple[str, Tensor]], *, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file atomically, one tensor (any shape) at a time, so that only one is in memory.

    Raises:
        StorageFailed: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(header_bytes(plan, metadata))
            for (name, (dtype, shape)), (tensor_name, tensor) in zip(plan.items(), tensors, strict=True):
                assert name == tensor_name and tuple(tensor.shape) == shape, (
                    f"{tensor_name} is not what was planned, {name}"
                )
                flat = tensor.to(dtype).contiguous().view(-1)
                file.write(flat.view(torch.uint8).numpy().data)
        temporary.replace(path)
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def header_bytes(plan: Plan, metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in plan.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": (offset, offset + size)}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
