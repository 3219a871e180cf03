"""Fetch a source to a local file or folder: a path, a URL, or a repository of the Hugging Face hub."""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safelight.errors import InvalidRequest, UnsafeFile
from safelight.models.checkpoints.hub_file import fetch_any, is_hub_id
from safelight.models.registry.download import download
from safelight.models.registry.licences import licence_of
from safelight.models.registry.version import Licence
from safelight.regular_file import real_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    path: Path
    name: str
    """The default name of the model."""
    origin: str
    """The path, URL or hub id it came from, as recorded in the registry."""
    revision: str = ""
    licence: Licence | None = None


def fetch_source(source: str | Path, *, folder: Path, partials: Path, private: bool, max_bytes: int) -> Source:
    """
    Downloads are written to `folder`; `partials` stores interrupted downloads for the next attempt.

    Raises:
        InvalidRequest: no such source, or its address is not allowed.
        UnsafeFile: a folder with links out of it.
    """
    text = str(source)
    if re.match(r"[a-zA-Z][\w+.-]*://", text):
        return from_url(text, folder=folder, partials=partials, private=private, max_bytes=max_bytes)
    if path := existing(source):
        if path.is_dir():
            require_no_links(path)
        return Source(path=path, name=name_from(path.stem if path.is_file() else path.name), origin=str(path))
    if is_hub_id(text):
        return from_hub(text)
    raise InvalidRequest(
        f"{text[:200]}: no such file or folder exists, and it is neither a URL nor org/name[@revision] on the hub"
    )


def existing(source: str | Path) -> Path | None:
    try:
        path = Path(source).expanduser()
        return path.resolve() if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, or no such user
        return None


def from_url(url: str, *, folder: Path, partials: Path, private: bool, max_bytes: int) -> Source:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise InvalidRequest(f"{parts.scheme}:// is not supported; use https or http")
    # User name and password in a URL must not be recorded.
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    name = name_from(Path(unquote(parts.path)).stem)
    target = folder / "download.safetensors"
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


def require_no_links(folder: Path) -> None:
    # The hub's cache stores the files of a snapshot beside it, in `blobs`.
    root = folder.parents[1] if folder.parent.name == "snapshots" else folder
    for path in folder.rglob("*"):
        if path.is_symlink() and not (target := real_path(path)).is_relative_to(root):
            raise UnsafeFile(f"{path} is a link out of {folder}, to {target}; replace it by the file")


def name_from(text: str) -> str:
    """Return the text with everything but letters, digits and `. _ -` replaced by `-`."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-_") or "model"
