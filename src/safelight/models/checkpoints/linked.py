"""Model folders of other programs, used where they lie: AUTOMATIC1111's, ComfyUI's, InvokeAI's. Imports no torch.

    models/Stable-diffusion/dream.safetensors   checkpoint `dream`
    models/Lora/styles/ink.safetensors          lora `ink`
    models/3f2a.../model.safetensors            in a folder nobody knows: what the file's header shows

Which folders are linked is in SAFELIGHT_HOME/links.json, and no database's business: they are this machine's. They are
looked into whenever a name is asked for, so a file that is put there is known at once.
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
from safelight.regular_file import read_regular, where_it_leads

SINGLE = ".safetensors"
LINKS = "links.json"
PLACES: Mapping[str, Kind] = {
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
"""What lies in folders of these names, in any case, and below them."""
MIXED: Mapping[Kind, tuple[Kind, ...]] = {"controlnet": ("ip-adapter", "t2i-adapter")}
"""What AUTOMATIC1111 keeps in a kind's folder beside that kind; a file's header tells which it is."""
ENCODER_NAMED = "image_encoder.txt"
"""Beside an IP-Adapter of InvokeAI's, whose files all have one name: its own is the folder's."""
COMPONENTS: tuple[Kind, ...] = ("vae", "controlnet", "t2i-adapter")
"""The kinds that may be a folder of configuration and weights."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What is in a linked folder."""

    root: Path
    files: dict[Kind, dict[str, Path]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    """By kind and name; of two of one name, the first in the order of folders."""
    pickles: dict[Kind, dict[str, Path]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    refused: dict[Path, str] = field(default_factory=dict[Path, str])
    """Why a file or folder is not used."""

    @property
    def escaping(self) -> dict[str, Path]:
        """Links that lead out, by the name that they would give."""
        return {path.stem: path for path in self.refused if path.is_symlink()}


@dataclass(frozen=True, slots=True)
class LinkedFolders:
    """All linked folders, as a place of the catalogue."""

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
        """They have no digests until they are read."""
        return None

    def pickles(self, kind: Kind) -> Mapping[str, Path]:
        return {name: path for tree in self.trees() for name, path in tree.pickles[kind].items()}

    def trees(self) -> Iterator[Tree]:
        for folder in read_links(self.home):
            if folder.is_dir():  # else on a disk that is not there now
                yield look_through(folder)


def look_through(root: Path) -> Tree:
    """Every model file in the folder, in no other, and no folder twice."""
    tree = Tree(root)
    real = where_it_leads(root)
    for place, folders, names in os.walk(root):
        folder = Path(place)
        folders.sort()
        for name in list(folders):
            if leads_out(folder / name, real):
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
            own = folder.name if kind == "ip-adapter" and ENCODER_NAMED in names else Path(name).stem
            look_at(tree, folder / name, kind, real, name=own)
    return tree


def look_at(tree: Tree, path: Path, kind: Kind | None, real: Path, *, name: str) -> None:
    if path.suffix not in (SINGLE, *PICKLE_SUFFIXES):
        return
    if leads_out(path, real):
        refuse_link(tree, path)
    elif path.suffix != SINGLE:
        tree.refused[path] = f"is a pickle, {WHY_NOT}: {conversion_of(path)}"
        if kind:
            add(tree.pickles[kind], name, path)
    elif kind := kind_among(kind, path):
        add(tree.files[kind], name, path)
    else:
        tree.refused[path] = "is nothing that is known of Stable Diffusion"


def add(named: dict[str, Path], name: str, path: Path) -> None:
    named.setdefault(name, path)


def leads_out(path: Path, real: Path) -> bool:
    return path.is_symlink() and not where_it_leads(path).is_relative_to(real)


def refuse_link(tree: Tree, path: Path) -> None:
    target = where_it_leads(path)
    folder = target if target.is_dir() else target.parent
    tree.refused[path] = (
        f"is a link that leads out of {tree.root}, to {target}; to use what is there: `safelight models link {folder}`"
    )


def kind_by_place(folder: Path, root: Path) -> Kind | None:
    """By the nearest folder of a known name; the linked folder's own name counts too."""
    names = [*folder.relative_to(root).parts[::-1], root.name]
    return next((PLACES[name.lower()] for name in names if name.lower() in PLACES), None)


def kind_among(place: Kind | None, path: Path) -> Kind | None:
    """What its place says it is, but where files of several kinds lie there, or of any."""
    if place is not None and place not in MIXED:
        return place
    found = kind_by_header(path)
    return found if place is None or found in MIXED[place] else place


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
        raise InvalidRequest(f'{file} is garbled; it should say {{"folders": ["/a/folder", ...]}}') from None


def link(home: Path, folder: Path) -> Tree:
    """Make a folder's models known from now on.

    Raises:
        InvalidRequest: it is no folder, or holds SAFELIGHT_HOME or lies in it.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is not a folder; name one that holds models, such as stable-diffusion-webui")
    folder = folder.resolve()
    if home.resolve().is_relative_to(folder) or folder.is_relative_to(home.resolve()):
        raise InvalidRequest(f"{folder} and SAFELIGHT_HOME ({home}) lie in one another: what is there is known already")
    links = read_links(home)
    if folder not in links:
        write_links(home, [*links, folder])
    return look_through(folder)


def unlink(home: Path, folder: Path) -> None:
    """Forget a folder; nothing in it is touched."""
    links = read_links(home)
    folder = folder.expanduser()
    gone = [known for known in links if known in (folder, folder.resolve())]
    if not gone:
        raise InvalidRequest(f"{folder} is not linked; linked are: {', '.join(map(str, links)) or 'none'}")
    write_links(home, [known for known in links if known not in gone])


def write_links(home: Path, folders: list[Path]) -> None:
    """All or nothing."""
    file = home / LINKS
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        home.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"folders": [str(folder) for folder in folders]}, indent=2), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise StorageFailed(f"cannot write {file}: {error.strerror}") from error
