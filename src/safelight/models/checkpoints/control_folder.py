"""The file or folder that the name of a ControlNet, an IP-Adapter, an image encoder or a face model refers to.

    controlnets/canny.safetensors              a single file: its name is `canny`
    controlnets/depth/config.json              a diffusers folder: its name is `depth`
    canny@2, canny@production                  a version in the registry, as for every kind of the catalogue
    ip-adapters/image_encoder/config.json      the image encoder beside an adapter
    depth-models/dpt/config.json               the network of the preprocessor `depth`
    face-models/w600k_r50.onnx                 a face model, for FaceID: its name is `w600k_r50`

The last three are not kinds of the catalogue and are found here. All folders are under SAFELIGHT_HOME.
Imports no torch.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safelight.errors import InvalidRequest, UnknownControl, UnknownModel
from safelight.models.checkpoints.catalogue import FOLDERS as CATALOGUED
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.digest import digest_of_sums, sums_of
from safelight.models.weights import identify
from safelight.models.weights.safetensors_file import NETWORK, TEXT_ENCODER, weight_files

Kind = Literal["control", "ip-adapter", "image-encoder", "face-model", "depth"]
LISTED: Mapping[Kind, tuple[identify.Kind, ...]] = {
    "control": ("controlnet", "t2i-adapter"),
    "ip-adapter": ("ip-adapter",),
}
"""The catalogue's kinds."""
FOLDERS: Mapping[Kind, tuple[str, ...]] = {
    **{kind: tuple(CATALOGUED[one] for one in kinds) for kind, kinds in LISTED.items()},
    "image-encoder": ("ip-adapters", "image-encoders"),
    "face-model": ("face-models",),
    "depth": ("depth-models",),
}
TITLES: Mapping[Kind, str] = {
    "control": "ControlNet or T2I-Adapter",
    "ip-adapter": "IP-Adapter",
    "image-encoder": "image encoder",
    "face-model": "face model",
    "depth": "depth model",
}


@dataclass(frozen=True, slots=True)
class ControlFolder:
    catalogue: Catalogue

    def paths(self, kind: Kind) -> dict[str, Path]:
        """Return paths by name; if two encoders share a name, the second is named by its relative path, such as
        `sdxl_models/image_encoder`."""
        found: dict[str, Path] = {}
        for listed in reversed(LISTED.get(kind, ())):
            found |= self.catalogue.files(listed)
        if kind not in LISTED:
            for folder in (self.catalogue.home / name for name in FOLDERS[kind]):
                for path in sorted(items_in(folder, kind)):
                    where = path.with_suffix("") if kind == "face-model" else path
                    found.setdefault(where.relative_to(folder).as_posix() if where.name in found else where.name, path)
        return dict(sorted(found.items()))

    def path(self, kind: Kind, name: str) -> Path:
        """
        Raises:
            UnknownControl: nothing has that name.
            UnsafeFile: the file's format can carry code, or it is a link out of its folder.
        """
        for listed in LISTED.get(kind, ()):
            with suppress(UnknownModel):
                return self.catalogue.find(name, listed)
        if kind not in LISTED:
            if found := self.paths(kind).get(name):
                return found
            with suppress(OSError, ValueError):  # longer than a path can be, or with a NUL in it
                if not self.catalogue.listed_only and ("/" in name or "\\" in name) and Path(name).exists():
                    return Path(name).absolute()
        where = " and ".join(f"SAFELIGHT_HOME/{folder}" for folder in FOLDERS[kind])
        raise UnknownControl(TITLES[kind], name[:200], list(self.paths(kind)), folder=where)

    def find(self, kind: Kind, name: str, *, digest: str | None = None) -> tuple[Path, str]:
        """Return path and digest: a file's sha256, or that of a folder's configuration and weights.

        Raises:
            UnknownControl: nothing has that name.
            InvalidRequest: its digest now differs from `digest`, and no version has that digest.
        """
        path = self.path(kind, name)
        found = self.digest(kind, path)
        if digest in (None, found):
            return path, found
        for listed in LISTED.get(kind, ()):
            if version := self.catalogue.version(str(digest), listed):
                return version, str(digest)
        raise InvalidRequest(
            f"{TITLES[kind]} {name!r} has digest {found[:10]} here, but {str(digest)[:10]} in the "
            "spec: the picture would differ"
        )

    def files(self, kind: Kind, path: Path) -> list[Path]:
        """Return the files that are read."""
        if path.is_file():
            return [path]
        return [path / "config.json", *weight_files(path, NETWORK if kind in LISTED else TEXT_ENCODER)]

    def digest(self, kind: Kind, path: Path) -> str:
        files = self.files(kind, path)
        sums = dict(zip((file.name for file in files), sums_of(files, cache=self.catalogue.sums), strict=True))
        return digest_of_sums(sums, entry=path.name if path.is_file() else "")

    def encoder_for(self, adapter: Path, named: str | None) -> str:
        """Return the requested image encoder, else the one beside the adapter, else the only one that exists."""
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
        raise InvalidRequest(f"{adapter.name} fits several image encoders, {', '.join(known)}: name one")

    def face_model_for(self, named: str | None) -> str:
        """Return the requested face model, else the only one that exists."""
        known = self.paths("face-model")
        if named is not None or len(known) == 1:
            return named or next(iter(known))
        what = f"there are {', '.join(known)}: name one" if known else "there is none in SAFELIGHT_HOME/face-models"
        raise InvalidRequest(f"a picture of a face is read by a face model, and {what}, or give its embedding as faces")


def items_in(folder: Path, kind: Kind) -> Iterator[Path]:
    """Yield what is no kind of the catalogue: ONNX files, or transformers folders."""
    if kind == "face-model":
        yield from folder.rglob("*.onnx")
    else:
        yield from (path.parent for path in folder.rglob("config.json") if path.parent != folder)
