"""Which file or folder the name of a ControlNet, a T2I-Adapter, an IP-Adapter or an image encoder stands for.

    SAFELIGHT_HOME/models/controlnet/canny.safetensors          a single file: its name is `canny`
    SAFELIGHT_HOME/models/controlnet/depth/config.json          a diffusers folder: its name is `depth`
    SAFELIGHT_HOME/models/ip-adapter/image_encoder/config.json  the image encoder beside an adapter

Imports no torch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safelight.errors import InvalidRequest, UnknownControl
from safelight.models.digest import sums_of
from safelight.models.safetensors_file import NETWORK, TEXT_ENCODER, weight_files

SUFFIX = ".safetensors"
Kind = Literal["control", "ip-adapter", "image-encoder", "depth"]
FOLDERS: dict[Kind, tuple[str, ...]] = {
    "control": ("controlnet", "t2i-adapter"),
    "ip-adapter": ("ip-adapter",),
    "image-encoder": ("ip-adapter", "image-encoder"),
    "depth": ("depth",),
}
TITLES: dict[Kind, str] = {
    "control": "ControlNet or T2I-Adapter",
    "ip-adapter": "IP-Adapter",
    "image-encoder": "image encoder",
    "depth": "depth model",
}
STEMS: dict[Kind, str] = {"control": NETWORK, "image-encoder": TEXT_ENCODER, "depth": TEXT_ENCODER}
"""What the weights in a folder of that kind are called; an IP-Adapter is always a file."""


@dataclass(frozen=True, slots=True)
class ControlFolder:
    models: Path
    sums: Path
    """Where the files' checksums are remembered."""
    by_path: bool = True
    """Whether a caller may name a file anywhere; not where callers are strangers."""

    def paths(self, kind: Kind) -> dict[str, Path]:
        """By name; of two of one name, the second goes by its place too, as in `sdxl_models/image_encoder`."""
        found: dict[str, Path] = {}
        for folder in (self.models / name for name in FOLDERS[kind]):
            for path in candidates(folder, kind):
                place = path.relative_to(folder).as_posix().removesuffix(SUFFIX)
                short = place.rpartition("/")[2]
                found.setdefault(place if short in found else short, path)
        return dict(sorted(found.items()))

    def path(self, kind: Kind, name: str) -> Path:
        """
        Raises:
            UnknownControl: nothing has that name.
        """
        known = self.paths(kind)
        if found := known.get(name.removesuffix(SUFFIX)):
            return found
        try:
            path = Path(name)
            if self.by_path and ("/" in name or "\\" in name or path.suffix == SUFFIX) and path.exists():
                return path.absolute()
        except (OSError, ValueError):  # longer than a path can be, or with a NUL in it
            pass
        where = " and ".join(f"SAFELIGHT_HOME/models/{folder}" for folder in FOLDERS[kind])
        raise UnknownControl(TITLES[kind], name[:200], list(known), folder=where)

    def find(self, kind: Kind, name: str, *, digest: str | None = None) -> tuple[Path, str]:
        """Where it is, and what names it for good: a file's sha256, or that of a folder's configuration and weights.

        Raises:
            UnknownControl: nothing has that name.
            InvalidRequest: it is another one by now than `digest` says.
        """
        path = self.path(kind, name)
        files = [path] if path.is_file() else [path / "config.json", *weight_files(path, STEMS[kind])]
        found = digest_of(files, sums_of(files, cache=self.sums))
        if digest not in (None, found):
            raise InvalidRequest(
                f"{TITLES[kind]} {name!r} is {found[:10]} here, {str(digest)[:10]} in the spec: "
                "the picture would differ"
            )
        return path, found

    def encoder_for(self, adapter: Path, named: str | None) -> str:
        """The image encoder that was asked for, else the one beside the adapter, else the only one there is."""
        if named is not None:
            return named
        known = self.paths("image-encoder")
        for folder in (adapter.parent / "image_encoder", adapter.parent.parent / "image_encoder"):
            if (folder / "config.json").is_file():
                return next((name for name, path in known.items() if path == folder), str(folder))
        if len(known) == 1:
            return next(iter(known))
        if not known:
            raise UnknownControl("image encoder", "image_encoder", [], folder=f"a folder beside {adapter.name}")
        raise InvalidRequest(f"{adapter.name} may have been made for any of {', '.join(known)}: name its encoder")


def candidates(folder: Path, kind: Kind) -> list[Path]:
    """Folders with a configuration, and files that are not the weights of such a folder."""
    found: list[Path] = []
    if kind in STEMS:
        found += [config.parent for config in folder.rglob("config.json") if config.parent != folder]
    if kind in ("control", "ip-adapter"):
        found += [file for file in folder.rglob(f"*{SUFFIX}") if not (file.parent / "config.json").is_file()]
    return sorted(found)


def digest_of(files: Sequence[Path], sums: Sequence[str]) -> str:
    if len(sums) == 1:
        return sums[0]
    named = (f"{path.name} {digest}\n" for path, digest in zip(files, sums, strict=True))
    return hashlib.sha256("".join(named).encode()).hexdigest()
