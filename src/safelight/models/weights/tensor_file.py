"""A safetensors file as tensors that are read when they are used, and written one at a time.

The file is mapped into memory, so a tensor costs nothing until something reads it, and one that needs no conversion is
never copied. What has been converted can be let go: the pages stay in the system's cache, and not in our memory.
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
"""The header is padded, so that every tensor begins where its numbers want to."""


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a file by name. They are views into it: they keep it mapped for as long as they live."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header = read_header(path)
        try:
            with open_regular(path) as file:
                # A private mapping: torch wants memory it may write to, and what it wrote would never reach the file.
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None

    def __getitem__(self, name: str) -> Tensor:
        entry = self.header.tensors[name]
        dtype = TORCH_DTYPES[entry.dtype]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=dtype)
        if entry.begin % dtype.itemsize:  # allowed by the format, and not by every processor
            whole = torch.frombuffer(self._bytes, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin)
            return whole.clone().view(dtype).view(entry.shape)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def release(self, tensor: Tensor) -> None:
        """Free the memory behind a view that has been copied; read again, it comes from the file again."""
        first = tensor.data_ptr() - torch.frombuffer(self._bytes, dtype=torch.uint8).data_ptr()
        last = first + tensor.nbytes
        if not 0 <= first < last <= len(self._bytes):
            return  # it is no view into this file
        page = mmap.PAGESIZE
        first, last = -(-first // page) * page, last // page * page
        if first < last and hasattr(self._bytes, "madvise"):
            self._bytes.madvise(mmap.MADV_DONTNEED, first, last - first)


Plan = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""What will be written, in order: the format and the shape of each tensor."""


def write_tensors(
    path: Path, plan: Plan, tensors: Iterable[tuple[str, Tensor]], *, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file tensor by tensor, so that no more than one is in memory; all of it or none.

    Raises:
        StorageFailed: the disk is full, or the folder cannot be written to.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(header_bytes(plan, metadata))
            for (name, (dtype, shape)), (given, tensor) in zip(plan.items(), tensors, strict=True):
                assert name == given and tuple(tensor.shape) == shape, f"{given} is not what was planned, {name}"
                flat = tensor.to(dtype).contiguous().view(-1)
                file.write(flat.view(torch.uint8).numpy().data)
        part.replace(path)
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def header_bytes(plan: Plan, metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name, (dtype, shape) in plan.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": (place, place + size)}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
