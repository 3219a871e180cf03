"""Where pictures and their captions come from. Nothing is decoded here; bytes are read when they are asked for.

| data | read as |
|---|---|
| a folder | every picture in it, its caption in a `.txt` of the same name, its mask in `NAME.mask.png` |
| a folder with `metadata.jsonl` or `metadata.csv`, or such a file | one picture a line: `file_name` and `text` |
| a `.parquet` file | the same columns; `image` may hold the bytes, as Hugging Face's do |
| a `.tar`, or a folder of nothing but these | WebDataset shards: files of one name belong together |
| any of these by URL | `s3://bucket/folder`, `https://host/set.tar`: whatever fsspec has a driver for |
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from safelight.errors import InvalidRequest, MissingExtra, needing

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
MASK = ".mask.png"
TABLES = (".jsonl", ".csv", ".parquet")
FILE_COLUMNS = ("file_name", "file", "path", "image", "url")
TEXT_COLUMNS = ("text", "caption", "prompt")
MASK_COLUMNS = ("mask", "mask_file")
Read = Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    key: str
    """Its name within the data, the same wherever the data lies."""
    caption: str | None
    """None where there is none."""
    read: Read
    read_mask: Read | None = None


@dataclass(frozen=True, slots=True)
class DataPath:
    """A folder or file, here or elsewhere."""

    system: Any
    path: str

    @staticmethod
    def at(where: str) -> "DataPath":
        from fsspec.core import url_to_fs

        try:
            return DataPath(*url_to_fs(where))
        except ImportError as error:
            if where.startswith("http"):
                raise MissingExtra(f"data {where} needs aiohttp", "data") from None
            raise InvalidRequest(f"data {where}: {error}") from None
        except ValueError as error:
            raise InvalidRequest(f"data {where}: {error}") from None

    def inside(self, name: str) -> "DataPath":
        """A file that a table names: beside the table, or somewhere else entirely."""
        return DataPath.at(name) if "://" in name else DataPath(self.system, f"{self.path.rstrip('/')}/{name}")

    def read(self) -> bytes:
        return self.system.cat_file(self.path)

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()

    @property
    def parent(self) -> "DataPath":
        return DataPath(self.system, str(PurePosixPath(self.path).parent))


def find_examples(where: str) -> list[Example]:
    """All of them, by key.

    Raises:
        InvalidRequest: there is nothing, or a table without the columns it needs.
    """
    place = DataPath.at(where)
    try:
        examples = list(examples_at(place, where))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidRequest(f"data {where}: there is no such folder or file") from None
    except (OSError, tarfile.TarError) as error:
        raise InvalidRequest(f"data {where} cannot be read: {error}") from None
    if not examples:
        raise InvalidRequest(
            f"data {where}: no pictures there; known are {', '.join(PICTURES)}, {', '.join(TABLES)}, .tar"
        )
    return sorted(examples, key=lambda example: example.key)


def examples_at(place: DataPath, where: str) -> Iterator[Example]:
    if place.suffix == ".tar":
        return from_shards([place])
    if place.suffix in TABLES:
        return from_table(place)
    files: list[str] = sorted(place.system.find(place.path))
    if not files:
        raise FileNotFoundError(where)
    root = place.path.rstrip("/")
    names = {path.removeprefix(root).lstrip("/"): path for path in files}
    for table in (f"metadata{suffix}" for suffix in TABLES):
        if table in names:
            return from_table(DataPath(place.system, names[table]))
    if not any(name.lower().endswith(PICTURES) for name in names):
        return from_shards(DataPath(place.system, path) for name, path in names.items() if name.endswith(".tar"))
    return from_files({name: DataPath(place.system, path).read for name, path in names.items()})


def from_files(files: Mapping[str, Read]) -> Iterator[Example]:
    """Files of one name belong together: the picture, its caption, its mask."""
    for name, read in files.items():
        stem, _, suffix = name.rpartition(".")
        if f".{suffix.lower()}" in PICTURES and not name.lower().endswith(MASK):
            yield Example(key=name, caption=caption_of(stem, files), read=read, read_mask=files.get(f"{stem}{MASK}"))


def caption_of(stem: str, files: Mapping[str, Read]) -> str | None:
    for suffix in ("txt", "caption", "json"):
        if read := files.get(f"{stem}.{suffix}"):
            text = read().decode("utf-8", "replace")
            return text_of(as_object(text)) if suffix == "json" else text.strip()
    return None


def as_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def text_of(row: Mapping[str, Any]) -> str | None:
    value = next((row[name] for name in TEXT_COLUMNS if row.get(name) is not None), None)
    return None if value is None else str(value).strip()


def from_table(table: DataPath) -> Iterator[Example]:
    rows = list(rows_of(table))
    for number, row in enumerate(rows):
        column = next((name for name in FILE_COLUMNS if row.get(name)), None)
        if column is None:
            raise InvalidRequest(
                f"{table.path}: row {number + 1} names no picture; it needs one of {', '.join(FILE_COLUMNS)}"
            )
        key, read = picture_of(row[column], table.parent, f"{number:06}")
        mask = next((row[name] for name in MASK_COLUMNS if row.get(name)), None)
        read_mask = None if mask is None else picture_of(mask, table.parent, "")[1]
        yield Example(key=key, caption=text_of(row), read=read, read_mask=read_mask)


def picture_of(value: Any, beside: DataPath, number: str) -> tuple[str, Read]:
    """A path, or Hugging Face's struct of bytes and path."""
    if isinstance(value, Mapping):
        data, name = value.get("bytes"), value.get("path")
        if data is not None:
            return f"{number}-{PurePosixPath(str(name or 'picture')).name}", partial(bytes, data)
        value = name
    if isinstance(value, bytes):
        return number, partial(bytes, value)
    return str(value), lambda: beside.inside(str(value)).read()


def rows_of(table: DataPath) -> Iterator[Mapping[str, Any]]:
    data = table.read()
    if table.suffix == ".parquet":
        yield from parquet_rows(data)
        return
    text = data.decode("utf-8-sig", "replace")
    if table.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = as_object(line)
            if not row:
                raise InvalidRequest(f"{table.path}: line {number} is no JSON object")
            yield row


def parquet_rows(data: bytes) -> list[dict[str, Any]]:
    with needing("data"):
        from pyarrow import BufferReader, parquet  # pyright: ignore[reportMissingImports]
    return parquet.read_table(BufferReader(data)).to_pylist()


def from_shards(shards: Iterable[DataPath]) -> Iterator[Example]:
    for shard in shards:
        with shard.system.open(shard.path, "rb") as file, tarfile.open(fileobj=file) as archive:
            members = [member for member in archive if member.isfile()]
        name = PurePosixPath(shard.path).stem
        files = {member.name: partial(read_member, shard, member.offset_data, member.size) for member in members}
        for example in from_files(files):
            yield Example(
                key=f"{name}/{example.key}", caption=example.caption, read=example.read, read_mask=example.read_mask
            )


def read_member(shard: DataPath, start: int, length: int) -> bytes:
    """Straight from its place in the archive, which is not read again from the front."""
    try:
        data = shard.system.cat_file(shard.path, start=start, end=start + length)
    except ValueError:  # fsspec's word for it repeats all that the server sent
        data = b""
    if len(data) != length:
        raise OSError(f"{shard.path}: parts of this archive cannot be had from where it is; fetch it first")
    return data
