"""The safetensors format, the only one that weights are read from: other formats can carry code.

The header is fully validated: format description at github.com/huggingface/safetensors.
"""

import json
import math
import os
import re
import shlex
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.errors import CorruptModel, UnsafeFile
from safelight.regular_file import is_regular, open_regular, read_regular

NETWORK, TEXT_ENCODER = "diffusion_pytorch_model", "model"
"""Names of weight files in diffusers' and in transformers' folders, without suffix and variant."""

MAX_HEADER_BYTES = 32 * 2**20
"""The format allows 100 MiB; SDXL's header has 0.4, and a LoRA that lists all its training images a few. Parsed JSON
takes twenty times its length in memory."""
MAX_TENSORS = 100_000
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""dtypes: the header's name, and torch's."""
BITS = re.compile(r"\d+")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WHY_NOT = "which can run code when opened"
VARIANTS = ("", ".fp16")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as the header describes it; `begin` and `end` count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    tensors: Mapping[str, Entry]
    """In the order of their positions in the file."""
    metadata: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the tensor's shape; empty if there is no such tensor."""
        return self.tensors[name].shape if name in self.tensors else ()


def conversion_of(path: Path) -> str:
    """Return the command that converts a pickle to safetensors."""
    return f"`safelight models convert {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.safetensors')))}`"


def read_header(path: Path) -> Header:
    """Read names, shapes and positions, and check dtypes, lengths, gaps, overlaps and the file's size.

    Raises:
        UnsafeFile: the file is a pickle or a zip, under any name.
        CorruptModel: it is truncated, or not a safetensors file.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= size - 8:
                raise not_safetensors(path, start, size)
            if length > MAX_HEADER_BYTES:
                raise CorruptModel(
                    f"{path} has a header of {length / 2**20:.0f} MiB; no model needs more than "
                    f"{MAX_HEADER_BYTES // 2**20}, so it is not read"
                )
            text = file.read(length)
    except OSError as error:
        raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None
    try:
        return parse_header(json.loads(text, object_pairs_hook=unique_names), first=8 + length, size=size)
    except HeaderProblem as error:
        raise CorruptModel(f"{path} {error}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError):
        raise CorruptModel(f"{path} has a header that is not a safetensors header") from None


class HeaderProblem(Exception):
    """The problem with a header, as the rest of a sentence that begins with the file's name."""


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(named := dict(pairs)) != len(pairs):
        raise HeaderProblem("names a tensor twice in its header")
    return named


def parse_header(raw: dict[str, Any], *, first: int, size: int) -> Header:
    """Check and convert a header. The tensors must fill the file from `first` to its end without gap or overlap."""
    metadata = raw.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()) or len(raw) > MAX_TENSORS:
        raise ValueError
    tensors = {name: parse_entry(name, entry, first) for name, entry in raw.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = max((entry.end for entry in tensors.values()), default=first)
    if end != size:
        how = "is cut off" if size < end else "is longer than it should be"
        raise HeaderProblem(f"{how}: its header promises {end} bytes, it has {size}; download it again")
    position = first
    for name, entry in tensors.items():
        if entry.begin != position:
            problem = "overlaps another" if entry.begin < position else "leaves a gap before it"
            raise HeaderProblem(f"has a garbled header: {name} {problem}")
        position = entry.end
    return Header(tensors, metadata)


def parse_entry(name: str, raw: dict[str, Any], first: int) -> Entry:
    dtype, shape, (begin, end) = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError
    if dtype not in DTYPES:
        raise HeaderProblem(
            f"holds {name[:80]} in the number format {str(dtype)[:20]!r}; known are {', '.join(DTYPES)}"
        )
    if end - begin != math.prod(shape) * item_bytes(dtype):
        raise HeaderProblem(f"has a garbled header: {name[:80]} of shape {shape} has {end - begin} bytes of {dtype}")
    return Entry(dtype, tuple(shape), first + begin, first + end)


def item_bytes(dtype: str) -> int:
    bits = BITS.search(dtype)
    return int(bits[0]) // 8 if bits else 1


def not_safetensors(path: Path, start: bytes, size: int) -> CorruptModel | UnsafeFile:
    """Return the error for an invalid start: the first bytes of a pickle or zip, read as a length, exceed any file."""
    pickles = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
    if start.startswith((*pickles, b"PK\x03\x04")):
        return UnsafeFile(f"{path} is a pickle, {WHY_NOT}; only safetensors weights are loaded: {conversion_of(path)}")
    return CorruptModel(f"{path} is not a safetensors file, or is cut off in its header ({size} bytes)")


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Return the single weight file, or the shards named by an index; else those of the fp16 variant."""
    for variant in VARIANTS:
        single = folder / f"{stem}{variant}.safetensors"
        if is_regular(single):
            return [single]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if is_regular(index):
            return shards(index)
    unsafe = sorted(path.name for path in folder.glob(f"{stem}*") if path.suffix in PICKLE_SUFFIXES)
    if unsafe:
        raise UnsafeFile(
            f"{folder} has weights only as {unsafe[0]}, {WHY_NOT}; convert it to safetensors: "
            f"{conversion_of(folder / unsafe[0])}"
        )
    raise CorruptModel(f"{folder} has no {stem}.safetensors")


def shards(index: Path) -> list[Path]:
    try:
        names = {str(name) for name in json.loads(read_regular(index))["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CorruptModel(f"{index} is not a shard index") from None
    for name in sorted(names):
        # A name with a slash could point outside the folder.
        if Path(name).name != name or "\0" in name or not is_regular(index.parent / name):
            raise CorruptModel(f"{index} names {name[:80]!r}, which is not a file beside it")
    return [index.parent / name for name in sorted(names)]
