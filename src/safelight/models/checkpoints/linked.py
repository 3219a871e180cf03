"""Model folders of other programs, used in place: AUTOMATIC1111's, ComfyUI's, InvokeAI's. Imports no torch.

    models/Stable-diffusion/dream.safetensors   checkpoint `dream`
    models/Lora/styles/ink.safetensors          lora `ink`
    models/3f2a.../model.safetensors            in a folder of unknown name: the kind is read from the file's header

The linked folders are listed in SAFELIGHT_HOME/links.json, not in the database, because they belong to this machine.
They are scanned at every lookup of a name, so a new file is found at once.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from safelight.errors import InvalidRequest, SafelightError, StorageFailed, UnsafeFile
from safelight.models.weights.identify import KINDS, Kind, identify
from safelight.models.weights.safetensors_file import NETWORK, PICKLE_SUFFIXES, WHY_NOT, conversion_of, read_header
from safelight.regular_file import read_regular, real_path

SINGLE = ".safetensors"
LINKS = "links.json"
KIND_FOLDERS: Mapping[str, Kind] = {
    "stable-diffusion": "checkpoint",  # AUTOMATIC1111
    "checkpoints": "checkpoint",  # ComfyUI
    "main": "checkpoint",  # InvokeAI
    "lora": "lora",
    "loras": "lora",
    "lycoris": "lora",
    "embedding": "embedding",
    "embeddings": "embedding",
    "vae": "vae",
    "controlnet": "controlnet",
    "t2i_adapter": "t2i-adapter",
    "t2iadapter": "t2i-adapter",
    "ip_adapter": "ip-adapter",
    "ipadapter": "ip-adapter",
    "upscale_models": "upscaler",
    "esrgan": "upscaler",
    "realesrgan": "upscaler",
    "swinir": "upscaler",
    "dat": "upscaler",
}
"""The kind of the files in and below folders of these names; case is ignored."""
MIXED_FOLDERS: Mapping[Kind, tuple[Kind, ...]] = {"controlnet": ("ip-adapter", "t2i-adapter")}
"""Other kinds that AUTOMATIC1111 stores in a kind's folder; the file's header decides."""
ENCODER_NAME_FILE = "image_encoder.txt"
"""Marks an IP-Adapter of InvokeAI, whose weight files all have the same name: the folder's name is used."""
COMPONENTS: tuple[Kind, ...] = ("vae", "controlnet", "t2i-adapter")
"""Kinds that can be a folder of configuration and weights."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The models in a linked folder."""

    root: Path
    files: dict[Kind, dict[str, Path]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    """By kind and name; if two have one name, the first in the order of folders."""
    pickles: dict[Kind, dict[str, Path]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    refused: dict[Path, str] = field(default_factory=dict[Path, str])
    """Why a file or folder is not used."""

    @property
    def escaping(self) -> dict[str, Path]:
        """Links out of the folder, by the model name they would have."""
        return {path.stem: path for path in self.refused if path.is_symlink()}


@dataclass(frozen=True, slots=True)
class LinkedFolders:
    """All linked folders, as a `ModelSource` of the catalogue."""

    home: Path

    def files(self, kind: Kind) -> Mapping[str, Path]:
        found: dict[str, Path] = {}
        for tree in self.trees():
            found = tree.files[kind] | found
        return found

    def find(self, name: str, kind: Kind) -> Path | None:
        trees = list(self.trees())
        name = name.removesuffix(SINGLE)
        for tree in trees:
            if path := tree.files[kind].get(name):
                return path
        for tree in trees:
            if path := tree.escaping.get(name):
                raise UnsafeFile(f"{path} {tree.refused[path]}")
        return None

    def pinned(self, digest: str, kind: Kind) -> Path | None:
        """Return None: the files are not hashed until they are used."""
        return None

    def pickles(self, kind: Kind) -> Mapping[str, Path]:
        return {name: path for tree in self.trees() for name, path in tree.pickles[kind].items()}

    def trees(self) -> Iterator[Tree]:
        for folder in read_links(self.home):
            if folder.is_dir():  # else on a disk that is not mounted
                yield scan_folder(folder)


def scan_folder(root: Path) -> Tree:
    """Find every model file in the folder; links out of it are not followed."""
    tree = Tree(root)
    real = real_path(root)
    for place, folders, names in os.walk(root):
        folder = Path(place)
        folders.sort()
        for name in list(folders):
            if escapes(folder / name, real):
                refuse_link(tree, folder / name)
        if "model_index.json" in names:
            add(tree.files["checkpoint"], folder.name, folder)
            folders.clear()
            continue
        kind = kind_by_place(folder, root)
        if "config.json" in names and kind in COMPONENTS and any(name.startswith(NETWORK) for name in names):
            add(tree.files[kind], folder.name, folder)
            continue
        for name in sorted(names):
            own = folder.name if kind == "ip-adapter" and ENCODER_NAME_FILE in names else Path(name).stem
            add_file(tree, folder / name, kind, real, name=own)
    return tree


def add_file(tree: Tree, path: Path, kind: Kind | None, real: Path, *, name: str) -> None:
    if path.suffix not in (SINGLE, *PICKLE_SUFFIXES):
        return
    if escapes(path, real):
        refuse_link(tree, path)
    elif path.suffix != SINGLE:
        tree.refused[path] = f"is a pickle, {WHY_NOT}: {conversion_of(path)}"
        if kind:
            add(tree.pickles[kind], name, path)
    elif kind := kind_among(kind, path):
        add(tree.files[kind], name, path)
    else:
        tree.refused[path] = "is no known kind of Stable Diffusion file"


def add(named: dict[str, Path], name: str, path: Path) -> None:
    named.setdefault(name, path)


def escapes(path: Path, real: Path) -> bool:
    return path.is_symlink() and not real_path(path).is_relative_to(real)


def refuse_link(tree: Tree, path: Path) -> None:
    target = real_path(path)
    folder = target if target.is_dir() else target.parent
    tree.refused[path] = (
        f"is a link out of {tree.root}, to {target}; to use that folder: `safelight models link {folder}`"
    )


def kind_by_place(folder: Path, root: Path) -> Kind | None:
    """Return the kind of the nearest folder with a known name, including the linked folder itself."""
    names = [*folder.relative_to(root).parts[::-1], root.name]
    return next((KIND_FOLDERS[name.lower()] for name in names if name.lower() in KIND_FOLDERS), None)


def kind_among(place: Kind | None, path: Path) -> Kind | None:
    """Return the kind by folder; by header if the folder is unknown or mixes kinds."""
    if place is not None and place not in MIXED_FOLDERS:
        return place
    found = kind_by_header(path)
    return found if place is None or found in MIXED_FOLDERS[place] else place


def kind_by_header(path: Path) -> Kind | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return remembered_kind(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def remembered_kind(path: Path, _size: int, _changed: int) -> Kind | None:
    try:
        found = identify(read_header(path))
    except SafelightError:
        return None
    return found.kind if found else None


# Which folders are linked ------------------------------------------------------------------------------------------


def read_links(home: Path) -> list[Path]:
    file = home / LINKS
    try:
        return [Path(folder) for folder in json.loads(read_regular(file))["folders"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidRequest(f'{file} is invalid; it should be {{"folders": ["/a/folder", ...]}}') from None


def link(home: Path, folder: Path) -> Tree:
    """Add a folder to the linked folders, and scan it.

    Raises:
        InvalidRequest: it is no folder, or contains SAFELIGHT_HOME or is inside it.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is not a folder; name one with models in it, such as stable-diffusion-webui")
    folder = folder.resolve()
    if home.resolve().is_relative_to(folder) or folder.is_relative_to(home.resolve()):
        raise InvalidRequest(f"{folder} and SAFELIGHT_HOME ({home}) overlap; models there are found already")
    links = read_links(home)
    if folder not in links:
        write_links(home, [*links, folder])
    return scan_folder(folder)


def unlink(home: Path, folder: Path) -> None:
    """Remove a folder from the linked folders; its files are not touched."""
    links = read_links(home)
    folder = folder.expanduser()
    gone = [known for known in links if known in (folder, folder.resolve())]
    if not gone:
        raise InvalidRequest(f"{folder} is not linked; linked are: {', '.join(map(str, links)) or 'none'}")
    write_links(home, [known for known in links if known not in gone])


def write_links(home: Path, folders: list[Path]) -> None:
    """Write links.json atomically."""
    file = home / LINKS
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        home.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"folders": [str(folder) for folder in folders]}, indent=2), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise StorageFailed(f"cannot write {file}: {error.strerror}") from error
