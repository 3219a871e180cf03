"""Describe a model on disk: its kind, its base model, and the files that belong to it."""

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
"""The names of a single file and of its safelight settings in the version's folder."""
COMPONENTS: Mapping[str, Kind] = {
    "AutoencoderKL": "vae",
    "ControlNetModel": "controlnet",
    "T2IAdapter": "t2i-adapter",
}
"""Kinds that diffusers stores as a folder of one network, by the class name in its config.json."""
EXTRA_FILES = (
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
    """The name that the model's file will have; empty if the folder is the model."""
    files: Mapping[str, Path]
    """The files that are read, by path in the version's folder; the digest covers only these."""
    extra_files: Mapping[str, Path]
    """Licences, READMEs and shard indices; stored, but not part of the digest."""

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def digest(self, sums: Mapping[str, str]) -> str:
        return digest_of_sums({name: sums[name] for name in self.files}, entry=self.entry)


def describe_files(path: Path, kind: Kind | None = None, *, keep_name: bool = False) -> FileDescription:
    """Describe a model from its header or configurations, without reading weights.

    Args:
        keep_name: the file stays in place, so its name is not changed.

    Raises:
        UnsafeFile: a format that can carry code.
        CorruptModel: damaged or truncated.
        InvalidRequest: not a model, or of another kind than `kind`.
    """
    if kind is not None and kind not in KINDS:
        raise InvalidRequest(f"no kind {kind!r}; known: {', '.join(KINDS)}")
    description = describe_file(path, kind, keep_name=keep_name) if path.is_file() else describe_folder(path)
    if kind not in (None, description.kind):
        raise InvalidRequest(
            f"{path} is a {description.kind} for {TITLES.get(description.base, description.base)}, not a {kind}"
        )
    return description


def describe_file(path: Path, kind: Kind | None, *, keep_name: bool) -> FileDescription:
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsafeFile(f"{path} is a pickle, {WHY_NOT}: {conversion_of(path)} makes safetensors of it")
    identity = identify(read_header(path)) or (Identity(kind=kind) if kind else None)
    if identity is None:
        raise InvalidRequest(
            f"{path} is no known kind of Stable Diffusion file; set its kind with --kind: {', '.join(KINDS)}"
        )
    entry = path.name if keep_name else ENTRY
    files = {entry: path}
    if identity.kind == "checkpoint" and (settings := own_settings(path)).is_file():
        files[settings.name if keep_name else ENTRY_SETTINGS] = settings
    return FileDescription(
        kind=identity.kind, base=identity.base, prediction=identity.prediction, entry=entry, files=files, extra_files={}
    )


def describe_folder(path: Path) -> FileDescription:
    if not path.is_dir():
        raise InvalidRequest(f"there is no file or folder {path}")
    if (path / "model_index.json").is_file():
        description = describe(path)
        files = {file.relative_to(path).as_posix(): file for file in files_of(description)}
        return FileDescription(
            kind="checkpoint",
            base=description.family.name,
            prediction=description.prediction,
            entry="",
            files=files,
            extra_files=extra_files(path),
        )
    config = read_class(path)
    if config not in COMPONENTS:
        raise InvalidRequest(
            f"{path} is neither a diffusers checkpoint (with model_index.json) nor a folder of one network "
            f"({', '.join(COMPONENTS)})"
        )
    weights = weight_files(path, NETWORK)
    identity = identify(read_header(weights[0]))
    files = {file.name: file for file in (path / "config.json", *weights)}
    return FileDescription(
        kind=COMPONENTS[config],
        base=identity.base if identity else "",
        prediction="",
        entry="",
        files=files,
        extra_files=extra_files(path),
    )


def extra_files(folder: Path) -> dict[str, Path]:
    paths = (path for pattern in EXTRA_FILES for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def read_class(folder: Path) -> str:
    """Return diffusers' class name of the network in the folder; empty if there is none."""
    try:
        config = json.loads(read_regular(folder / "config.json"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, RecursionError):
        raise CorruptModel(f"{folder / 'config.json'} is not a configuration") from None
    return str(config.get("_class_name", "")) if isinstance(config, dict) else ""
