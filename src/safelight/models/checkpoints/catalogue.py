"""The model files of every kind that exist, and the file each name refers to. Imports no torch.

mini              the embedded model
my-model          a folder or a file of that name in its kind's folder under SAFELIGHT_HOME (`FOLDERS`)
                  or, after those, a version in the registry: brand, brand@production; or one in a linked folder
./some/path       a safetensors file, or a diffusers folder
org/name@revision a checkpoint on the Hugging Face hub
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safelight.errors import InvalidRequest, UnknownLora, UnknownModel, UnsafeFile
from safelight.models.checkpoints.digest import sums_of
from safelight.models.checkpoints.hub import HUB_ID, fetch
from safelight.models.weights.identify import Kind
from safelight.models.weights.safetensors_file import NETWORK, PICKLE_SUFFIXES, WHY_NOT, conversion_of
from safelight.regular_file import is_regular, real_path

MINI = Path(__file__).parents[1] / "mini"
SINGLE = ".safetensors"
FOLDERS: Mapping[Kind, str] = {
    "checkpoint": "models",
    "vae": "vaes",
    "lora": "loras",
    "embedding": "embeddings",
    "controlnet": "controlnets",
    "t2i-adapter": "t2i-adapters",
    "ip-adapter": "ip-adapters",
    "upscaler": "upscalers",
}
"""The folder of each kind, under SAFELIGHT_HOME."""
INDICES: Mapping[Kind, str] = {
    "checkpoint": "model_index.json",
    "vae": "config.json",
    "controlnet": "config.json",
    "t2i-adapter": "config.json",
}
"""The file that marks a diffusers folder; the other kinds are single files."""
SUMS = Path("cache") / "sums.json"


class ModelSource(Protocol):
    """Another source of model files: the registry, linked folders."""

    def files(self, kind: Kind) -> Mapping[str, Path]:
        """Return the listed files by name."""
        ...

    def find(self, name: str, kind: Kind) -> Path | None:
        """Return a file by name, also if it is not listed, such as a version that no alias points to."""
        ...

    def pinned(self, digest: str, kind: Kind) -> Path | None:
        """Return a file by its digest, under any name."""
        ...

    def pickles(self, kind: Kind) -> Mapping[str, Path]:
        """Return files that are not used because their format can carry code."""
        ...


@dataclass(frozen=True, slots=True)
class Catalogue:
    home: Path
    sources: tuple[ModelSource, ...] = ()
    """Searched in this order, after the folders under `home`."""
    listed_only: bool = False
    """Find listed models only, neither paths nor downloads: for callers that are not trusted."""

    @property
    def sums(self) -> Path:
        """The cache of the files' checksums."""
        return self.home / SUMS

    def folder(self, kind: Kind = "checkpoint") -> Path:
        return self.home / FOLDERS[kind]

    def names(self, kind: Kind = "checkpoint") -> list[str]:
        return [*(["mini"] if kind == "checkpoint" else []), *self.files(kind)]

    def files(self, kind: Kind = "checkpoint") -> dict[str, Path]:
        """Return the listed files by name; if two have one name, the one that `find` returns."""
        files: dict[str, Path] = {}
        for source in reversed(self.sources):
            files |= source.files(kind)
        return dict(sorted((files | own_files(self.folder(kind), kind)).items()))

    def find(self, name: str, kind: Kind = "checkpoint", *, half: bool = False) -> Path:
        """Return the folder or file a name refers to; the hub is queried only if no local model has that name.

        Raises:
            UnknownModel, UnknownLora: nothing has that name.
            UnsafeFile: the file's format can carry code, or it is a link out of its folder.
        """
        if found := self.listed(name, kind):
            return found
        if not self.listed_only:
            if found := self.at_path(name, kind):
                return found
            if kind == "checkpoint" and HUB_ID.match(name):
                return fetch(name, half=half)
        raise unknown(name[:200], self.names(kind), kind)

    def listed(self, name: str, kind: Kind = "checkpoint") -> Path | None:
        """Return the listed file the name refers to now; no paths, no downloads."""
        if kind == "checkpoint" and name == "mini":
            return MINI
        own = own_files(self.folder(kind), kind)
        if found := own.get(name) or own.get(name.removesuffix(SINGLE)):
            return require_inside(found, self.folder(kind))
        return next((found for source in self.sources if (found := source.find(name, kind))), None)

    def at_path(self, name: str, kind: Kind = "checkpoint") -> Path | None:
        """Return the model at a local path, if there is one; files with other suffixes are ignored."""
        path = Path(name)
        try:
            if path.suffix in (SINGLE, *PICKLE_SUFFIXES) and (kind == "checkpoint" or is_path(name)) and path.is_file():
                if path.suffix != SINGLE:
                    raise UnsafeFile(f"{path} is a pickle, {WHY_NOT}: {conversion_of(path)} converts it")
                return path.resolve()
            is_folder = path.is_dir()
        except (OSError, ValueError):  # longer than a path can be, or with a NUL in it
            raise unknown(f"{name[:80]}...", self.names(kind), kind) from None
        if is_folder and kind in INDICES and (path / INDICES[kind]).is_file():
            return path.resolve()
        if is_folder and kind == "checkpoint" and str(path) not in ("", "."):
            raise UnknownModel(f"{path} (a folder without model_index.json)", self.names())
        return None

    def sum(self, path: Path) -> str:
        """Return a file's sha256."""
        [digest] = sums_of([path], cache=self.sums)
        return digest

    def pinned(self, name: str, digest: str, kind: Kind) -> Path:
        """Return the file of a spec: the one its name refers to now, or a version with this digest.

        Raises:
            InvalidRequest: the name now refers to another file, and no version has this digest.
        """
        problem: InvalidRequest
        try:
            path = self.find(name, kind)
            if (now := self.sum(path)) == digest:
                return path
            problem = digest_mismatch(name, kind, now=now, then=digest)
        except (UnknownModel, UnknownLora) as error:
            problem = error
        if version := self.version(digest, kind):
            return version
        raise problem

    def version(self, digest: str, kind: Kind) -> Path | None:
        """Return the file with this digest, under any name, if a source knows it without hashing files."""
        return next((found for source in self.sources if (found := source.pinned(digest, kind))), None)

    def pickles(self, kind: Kind) -> dict[str, Path]:
        """Return files of that kind that exist only in a format that can carry code."""
        folder = self.folder(kind)
        found = {path.stem: path for path in folder.rglob("*") if path.suffix in PICKLE_SUFFIXES}
        for source in self.sources:
            found |= source.pickles(kind)
        return {name: path for name, path in found.items() if name not in self.files(kind)} if found else {}


def own_files(folder: Path, kind: Kind) -> dict[str, Path]:
    """Return the models under one of our folders by name; if two have one name, the first in the order of folders."""
    if kind == "checkpoint":
        # If a folder and a file have one name, the folder is used.
        files = [path for pattern in ("*", "checkpoints/*") for path in folder.glob(f"{pattern}{SINGLE}")]
        folders = [index.parent for index in folder.glob("*/model_index.json")]
        return {path.stem: path for path in files} | {path.name: path for path in folders}
    return dict(reversed([*named_files(folder)]))


def named_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield files at any depth, and diffusers folders of one component."""
    for path in sorted(folder.rglob(f"*{SINGLE}")):
        if path.name.startswith(NETWORK) and is_regular(path.parent / "config.json"):
            yield path.parent.name, path.parent
        elif not is_regular(path.parent / "config.json"):  # such as the image encoder beside an IP-Adapter
            yield path.name.removesuffix(SINGLE), path


def require_inside(path: Path, folder: Path) -> Path:
    """Return the path itself.

    Raises:
        UnsafeFile: the path, or a file in it, is a link out of the folder.
    """
    root = real_path(folder)
    parts = [path, *path.rglob("*")] if path.is_dir() else [path]
    for part in parts:
        if not (target := real_path(part)).is_relative_to(root):
            raise UnsafeFile(
                f"{part} is a link out of {folder}, to {target}: copy the file, or link its folder "
                "with `safelight models link`"
            )
    return path


def is_path(name: str) -> bool:
    return name.endswith((SINGLE, *PICKLE_SUFFIXES)) and ("/" in name or "\\" in name)


def unknown(name: str, known: list[str], kind: Kind) -> UnknownModel | UnknownLora:
    match kind:
        case "lora":
            return UnknownLora(name, known)
        case "checkpoint":
            return UnknownModel(name, known)
        case _:
            return UnknownModel(name, known, kind=kind)


def digest_mismatch(name: str, kind: Kind, *, now: str, then: str) -> InvalidRequest:
    what = {"lora": "LoRA", "checkpoint": "model"}.get(kind, kind)
    return InvalidRequest(
        f"{what} {name!r} has digest {now[:10]} here, but {then[:10]} in the spec: the picture would differ"
    )
