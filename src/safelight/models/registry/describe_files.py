"""What is at a place on this disk: which kind of model, for which base, and which files make it up."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import CorruptModel, InvalidRequest, UnsafeFile
from safelight.models.checkpoints.digest import digest_of_sums, files_of
from safelight.models.checkpoints.families import describe, own_settings
from safelight.models.weights.identify import KINDS, TITLES, Identity, Kind, identify
from safelight.models.weights.safetensors_file import (
    NETWORK,
    PICKLE_SUFFIXES,
    WHY_NOT,
    conversion_of,
    read_header,
    weight_files,
)
from safelight.regular_file import read_regular

ENTRY, ENTRY_SETTINGS = "weights.safetensors", "weights.safelight.json"
"""What a single file is called in its version's folder, and safelight's own word on it."""
COMPONENTS: Mapping[str, Kind] = {
    "AutoencoderKL": "vae",
    "ControlNetModel": "controlnet",
    "T2IAdapter": "t2i-adapter",
}
"""The kinds that diffusers keeps as a folder of one network, by what its config.json calls it."""
BESIDE = (
    "LICENSE*",
    "LICENCE*",
    "license*",
    "licence*",
    "COPYING*",
    "README*",
    "NOTICE*",
    "**/*.safetensors.index*.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDescription:
    kind: Kind
    base: str
    prediction: str
    entry: str
    """The name that the model's file will have; empty: the folder is the model."""
    read: Mapping[str, Path]
    """What is read of it, by its path in the version's folder; these alone make the digest."""
    beside: Mapping[str, Path]
    """Licences, and what leads to the others; kept, and no part of the digest."""

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.read.values())

    def digest(self, sums: Mapping[str, str]) -> str:
        return digest_of_sums({name: sums[name] for name in self.read}, entry=self.entry)


def look_into(path: Path, kind: Kind | None = None, *, keep_name: bool = False) -> FileDescription:
    """Read the header or the configurations, and no weights; a file that stays where it is keeps its name.

    Raises:
        UnsafeFile: a format that can carry code.
        CorruptModel: damaged, or cut off.
        InvalidRequest: not a model, or of another kind than was said.
    """
    if kind is not None and kind not in KINDS:
        raise InvalidRequest(f"no kind {kind!r}; known: {', '.join(KINDS)}")
    found = file_contents(path, kind, keep_name=keep_name) if path.is_file() else folder_contents(path)
    if kind not in (None, found.kind):
        raise InvalidRequest(f"{path} is a {found.kind} for {TITLES.get(found.base, found.base)}, not a {kind}")
    return found


def file_contents(path: Path, kind: Kind | None, *, keep_name: bool) -> FileDescription:
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsafeFile(f"{path} is a pickle, {WHY_NOT}: {conversion_of(path)} makes safetensors of it")
    found = identify(read_header(path)) or (Identity(kind=kind) if kind else None)
    if found is None:
        raise InvalidRequest(
            f"{path} holds nothing that is known of Stable Diffusion; --kind says what it is: {', '.join(KINDS)}"
        )
    entry = path.name if keep_name else ENTRY
    read = {entry: path}
    if found.kind == "checkpoint" and (settings := own_settings(path)).is_file():
        read[settings.name if keep_name else ENTRY_SETTINGS] = settings
    return FileDescription(
        kind=found.kind, base=found.base, prediction=found.prediction, entry=entry, read=read, beside={}
    )


def folder_contents(path: Path) -> FileDescription:
    if not path.is_dir():
        raise InvalidRequest(f"there is no file or folder {path}")
    if (path / "model_index.json").is_file():
        about = describe(path)
        read = {file.relative_to(path).as_posix(): file for file in files_of(about)}
        return FileDescription(
            kind="checkpoint",
            base=about.family.name,
            prediction=about.prediction,
            entry="",
            read=read,
            beside=beside(path),
        )
    config = read_class(path)
    if config not in COMPONENTS:
        raise InvalidRequest(
            f"{path} is neither a diffusers checkpoint (with model_index.json) nor a folder of one network "
            f"({', '.join(COMPONENTS)})"
        )
    weights = weight_files(path, NETWORK)
    found = identify(read_header(weights[0]))
    read = {file.name: file for file in (path / "config.json", *weights)}
    return FileDescription(
        kind=COMPONENTS[config],
        base=found.base if found else "",
        prediction="",
        entry="",
        read=read,
        beside=beside(path),
    )


def beside(folder: Path) -> dict[str, Path]:
    found = (path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def read_class(folder: Path) -> str:
    """What diffusers calls the network in the folder; empty where it is none."""
    try:
        config = json.loads(read_regular(folder / "config.json"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, RecursionError):
        raise CorruptModel(f"{folder / 'config.json'} is not a configuration") from None
    return str(config.get("_class_name", "")) if isinstance(config, dict) else ""
