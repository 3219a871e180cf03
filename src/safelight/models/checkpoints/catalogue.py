"""Which model files there are, of every kind, and where a name leads. Imports no torch.

mini              the embedded model
my-model          a folder or a file of that name in its kind's folder under SAFELIGHT_HOME (`FOLDERS`)
                  or, after those, a version in the registry: brand, brand@production; or one of a linked folder
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
from safelight.regular_file import is_regular, where_it_leads

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
"""Where each kind is kept, under SAFELIGHT_HOME."""
INDICES: Mapping[Kind, str] = {
    "checkpoint": "model_index.json",
    "vae": "config.json",
    "controlnet": "config.json",
    "t2i-adapter": "config.json",
}
"""The file that tells of a diffusers folder; the other kinds are single files."""
SUMS = Path("cache") / "sums.json"


class ModelSource(Protocol):
    """Another place that knows model files: the registry, linked folders."""

    def files(self, kind: Kind) -> Mapping[str, Path]:
        """What is listed there, by name."""
        ...

    def find(self, name: str, kind: Kind) -> Path | None:
        """Also what is not listed, such as a version that no alias points to."""
        ...

    def pinned(self, digest: str, kind: Kind) -> Path | None:
        """By its digest, whatever it is called now."""
        ...

    def pickles(self, kind: Kind) -> Mapping[str, Path]:
        """What would be there, were it not in a format that can carry code."""
        ...


@dataclass(frozen=True, slots=True)
class Catalogue:
    home: Path
    elsewhere: tuple[ModelSource, ...] = ()
    """Asked in this order, after our own folders."""
    listed_only: bool = False
    """Find what is listed, and neither paths nor what would have to be downloaded: where callers are strangers."""

    @property
    def sums(self) -> Path:
        """Where the files' checksums are remembered."""
        return self.home / SUMS

    def folder(self, kind: Kind = "checkpoint") -> Path:
        return self.home / FOLDERS[kind]

    def names(self, kind: Kind = "checkpoint") -> list[str]:
        return [*(["mini"] if kind == "checkpoint" else []), *self.files(kind)]

    def files(self, kind: Kind = "checkpoint") -> dict[str, Path]:
        """What is listed, by name; of two of one name, what `find` would find."""
        named: dict[str, Path] = {}
        for place in reversed(self.elsewhere):
            named |= place.files(kind)
        return dict(sorted((named | own_files(self.folder(kind), kind)).items()))

    def find(self, name: str, kind: Kind = "checkpoint", *, half: bool = False) -> Path:
        """The folder or file a name stands for; asks the hub only when nothing here has that name.

        Raises:
            UnknownModel, UnknownLora: nothing has that name.
            UnsafeFile: it is a file in a format that can carry code, or a link that leaves its folder.
        """
        if found := self.listed(name, kind):
            return found
        if not self.listed_only:
            if found := self.at(name, kind):
                return found
            if kind == "checkpoint" and HUB_ID.match(name):
                return fetch(name, half=half)
        raise unknown(name[:200], self.names(kind), kind)

    def listed(self, name: str, kind: Kind = "checkpoint") -> Path | None:
        """What that name stands for at this moment, without paths and downloads."""
        if kind == "checkpoint" and name == "mini":
            return MINI
        own = own_files(self.folder(kind), kind)
        if found := own.get(name) or own.get(name.removesuffix(SINGLE)):
            return inside(found, self.folder(kind))
        return next((found for place in self.elsewhere if (found := place.find(name, kind))), None)

    def at(self, name: str, kind: Kind = "checkpoint") -> Path | None:
        """What is at that place on this machine; other kinds of files are none of our business, and not looked at."""
        path = Path(name)
        try:
            if path.suffix in (SINGLE, *PICKLE_SUFFIXES) and (kind == "checkpoint" or is_path(name)) and path.is_file():
                if path.suffix != SINGLE:
                    raise UnsafeFile(f"{path} is a pickle, {WHY_NOT}: {conversion_of(path)} makes safetensors of it")
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
        """A file's sha256."""
        [digest] = sums_of([path], cache=self.sums)
        return digest

    def pinned(self, name: str, digest: str, kind: Kind) -> Path:
        """The file that a spec was made with: what its name stands for now, or a version that has this digest.

        Raises:
            InvalidRequest: the name stands for another file by now, and no version is that one.
        """
        fault: InvalidRequest
        try:
            path = self.find(name, kind)
            if (now := self.sum(path)) == digest:
                return path
            fault = another_file(name, kind, now=now, then=digest)
        except (UnknownModel, UnknownLora) as error:
            fault = error
        if version := self.version(digest, kind):
            return version
        raise fault

    def version(self, digest: str, kind: Kind) -> Path | None:
        """The file that has this digest, whatever it is called, where that is known without looking for it."""
        return next((found for place in self.elsewhere if (found := place.pinned(digest, kind))), None)

    def pickles(self, kind: Kind) -> dict[str, Path]:
        """Files of that kind that are here only in a format that can carry code."""
        folder = self.folder(kind)
        found = {path.stem: path for path in folder.rglob("*") if path.suffix in PICKLE_SUFFIXES}
        for place in self.elsewhere:
            found |= place.pickles(kind)
        return {name: path for name, path in found.items() if name not in self.files(kind)} if found else {}


def own_files(folder: Path, kind: Kind) -> dict[str, Path]:
    """Those under a folder of ours by name; of two of one name, the first in the order of folders."""
    if kind == "checkpoint":
        # Of a folder and a file of one name, the folder.
        files = [path for place in ("*", "checkpoints/*") for path in folder.glob(f"{place}{SINGLE}")]
        folders = [index.parent for index in folder.glob("*/model_index.json")]
        return {path.stem: path for path in files} | {path.name: path for path in folders}
    return dict(reversed([*named_files(folder)]))


def named_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of any depth, and diffusers' folders of one component."""
    for path in sorted(folder.rglob(f"*{SINGLE}")):
        if path.name.startswith(NETWORK) and is_regular(path.parent / "config.json"):
            yield path.parent.name, path.parent
        elif not is_regular(path.parent / "config.json"):  # such as the image encoder beside an IP-Adapter
            yield path.name.removesuffix(SINGLE), path


def inside(path: Path, folder: Path) -> Path:
    """The path itself.

    Raises:
        UnsafeFile: it, or a file in it, is a link that leads out of the folder.
    """
    root = where_it_leads(folder)
    parts = [path, *path.rglob("*")] if path.is_dir() else [path]
    for part in parts:
        if not (target := where_it_leads(part)).is_relative_to(root):
            raise UnsafeFile(
                f"{part} is a link that leads out of {folder}, to {target}: copy the file, or make its folder "
                "known with `safelight models link`"
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


def another_file(name: str, kind: Kind, *, now: str, then: str) -> InvalidRequest:
    what = {"lora": "LoRA", "checkpoint": "model"}.get(kind, kind)
    return InvalidRequest(f"{what} {name!r} is {now[:10]} here and {then[:10]} in the spec: the picture would differ")
