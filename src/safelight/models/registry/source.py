"""A source becomes a file or a folder on this disk: a path, a URL, or a repository of the Hugging Face hub."""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safelight.errors import InvalidRequest, UnsafeFile
from safelight.models.checkpoints.hub_file import fetch_any, is_hub
from safelight.models.registry.download import download
from safelight.models.registry.licences import licence_of
from safelight.models.registry.version import Licence
from safelight.regular_file import where_it_leads


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    path: Path
    name: str
    """What it would be called, if nobody says otherwise."""
    origin: str
    """Where it came from, for the record."""
    revision: str = ""
    licence: Licence | None = None


def fetched(source: str | Path, *, room: Path, partials: Path, private: bool, max_bytes: int) -> Source:
    """
    `room` is for what is downloaded; `partials` keeps what was cut off, for the next try.

    Raises:
        InvalidRequest: there is no such thing, or it lies where we do not go.
        UnsafeFile: a folder with links that lead out of it.
    """
    text = str(source)
    if re.match(r"[a-zA-Z][\w+.-]*://", text):
        return from_url(text, room=room, partials=partials, private=private, max_bytes=max_bytes)
    if path := existing(source):
        if path.is_dir():
            refuse_links(path)
        return Source(path=path, name=name_from(path.stem if path.is_file() else path.name), origin=str(path))
    if is_hub(text):
        return from_hub(text)
    raise InvalidRequest(
        f"{text[:200]}: no such file or folder is here, and it is neither a URL nor org/name[@revision] on the hub"
    )


def existing(source: str | Path) -> Path | None:
    try:
        path = Path(source).expanduser()
        return path.resolve() if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, or no such user
        return None


def from_url(url: str, *, room: Path, partials: Path, private: bool, max_bytes: int) -> Source:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise InvalidRequest(f"{parts.scheme}:// is not fetched from; https and http are")
    # A name and a password in a URL are for the server, not for the record.
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    name = name_from(Path(unquote(parts.path)).stem)
    target = room / "download.safetensors"
    asyncio.run(download(url, target, partials=partials, private=private, max_bytes=max_bytes))
    return Source(path=target, name=name, origin=plain)


def from_hub(hub_id: str) -> Source:
    found = fetch_any(hub_id)
    return Source(
        path=found.path,
        name=name_from(found.repository.rpartition("/")[2] if found.path.is_dir() else found.path.stem),
        origin=f"hf://{found.repository}" + ("" if found.path.is_dir() else f"/{found.file}"),
        revision=found.commit,
        licence=licence_of(found.licence) if found.licence else None,
    )


def refuse_links(folder: Path) -> None:
    # The hub's own cache keeps the files of a snapshot beside it, in `blobs`.
    root = folder.parents[1] if folder.parent.name == "snapshots" else folder
    for path in folder.rglob("*"):
        if path.is_symlink() and not (target := where_it_leads(path)).is_relative_to(root):
            raise UnsafeFile(f"{path} is a link that leads out of {folder}, to {target}; replace it by the file")


def name_from(text: str) -> str:
    """Letters, digits and `. _ -` of it."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-_") or "model"
