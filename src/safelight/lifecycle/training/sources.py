"""Find pictures and their captions. Nothing is decoded here; bytes are read on demand.

| data | read as |
|---|---|
| a folder | every picture in it, its caption in a `.txt` of the same name, its mask in `NAME.mask.png` |
| a folder with `metadata.jsonl` or `metadata.csv`, or such a file | one picture per line: `file_name` and `text` |
| a `.parquet` file | the same columns; `image` may hold the bytes, as in Hugging Face's datasets |
| a `.tar`, or a folder that holds only these | WebDataset shards: files of one name belong together |
| any of these by URL | `s3://bucket/folder`, `https://host/set.tar`: anything that fsspec has a driver for |
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
    """Its name within the data, independent of the data's location."""
    caption: str | None
    """None if there is none."""
    read: Read
    read_mask: Read | None = None


@dataclass(frozen=True, slots=True)
class DataPath:
    """A folder or file, local or remote."""

    system: Any
    path: str

    @staticmethod
    def at(location: str) -> "DataPath":
        from fsspec.core import url_to_fs

        try:
            return DataPath(*url_to_fs(location))
        except ImportError as error:
            if location.startswith("http"):
                raise MissingExtra(f"data {location} needs aiohttp", "data") from None
            raise InvalidRequest(f"data {location}: {error}") from None
        except ValueError as error:
            raise InvalidRequest(f"data {location}: {error}") from None

    def inside(self, name: str) -> "DataPath":
        """A file that a table names: relative to the table's folder, or by URL."""
        return DataPath.at(name) if "://" in name else DataPath(self.system, f"{self.path.rstrip('/')}/{name}")

    def read(self) -> bytes:
        return self.system.cat_file(self.path)

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()

    @property
    def parent(self) -> "DataPath":
        return DataPath(self.system, str(PurePosixPath(self.path).parent))


def find_examples(location: str) -> list[Example]:
    """All examples at a path or URL, sorted by key.

    Raises:
        InvalidRequest: there are no pictures, or a table lacks a required column.
    """
    data = DataPath.at(location)
    try:
        examples = list(examples_at(data, location))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidRequest(f"data {location}: there is no such folder or file") from None
    except (OSError, tarfile.TarError) as error:
        raise InvalidRequest(f"data {location} cannot be read: {error}") from None
    if not examples:
        raise InvalidRequest(
            f"data {location} has no pictures; supported are {', '.join(PICTURES)}, {', '.join(TABLES)}, .tar"
        )
    return sorted(examples, key=lambda example: example.key)


def examples_at(data: DataPath, location: str) -> Iterator[Example]:
    if data.suffix == ".tar":
        return from_shards([data])
    if data.suffix in TABLES:
        return from_table(data)
    files: list[str] = sorted(data.system.find(data.path))
    if not files:
        raise FileNotFoundError(location)
    root = data.path.rstrip("/")
    names = {path.removeprefix(root).lstrip("/"): path for path in files}
    for table in (f"metadata{suffix}" for suffix in TABLES):
        if table in names:
            return from_table(DataPath(data.system, names[table]))
    if not any(name.lower().endswith(PICTURES) for name in names):
        return from_shards(DataPath(data.system, path) for name, path in names.items() if name.endswith(".tar"))
    return from_files({name: DataPath(data.system, path).read for name, path in names.items()})


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
                f"{table.path}: row {number + 1} has no picture; it needs one of {', '.join(FILE_COLUMNS)}"
            )
        key, read = picture_of(row[column], table.parent, f"{number:06}")
        mask = next((row[name] for name in MASK_COLUMNS if row.get(name)), None)
        read_mask = None if mask is None else picture_of(mask, table.parent, "")[1]
        yield Example(key=key, caption=text_of(row), read=read, read_mask=read_mask)


def picture_of(value: Any, folder: DataPath, number: str) -> tuple[str, Read]:
    """Key and reader of a column's value: a path, or Hugging Face's struct of bytes and path."""
    if isinstance(value, Mapping):
        data, name = value.get("bytes"), value.get("path")
        if data is not None:
            return f"{number}-{PurePosixPath(str(name or 'picture')).name}", partial(bytes, data)
        value = name
    if isinstance(value, bytes):
        return number, partial(bytes, value)
    return str(value), lambda: folder.inside(str(value)).read()


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
                raise InvalidRequest(f"{table.path}: line {number} is not a JSON object")
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
    """Read a file of the archive by its offset, without reading the archive from its start."""
    try:
        data = shard.system.cat_file(shard.path, start=start, end=start + length)
    except ValueError:  # fsspec's message would repeat the server's whole response
        data = b""
    if len(data) != length:
        raise OSError(f"{shard.path}: its server does not support range requests; download the archive first")
    return data
