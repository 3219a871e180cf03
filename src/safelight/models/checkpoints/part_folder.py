"""The file or folder that the name of an autoencoder or a text encoder refers to. Imports no torch.

my-vae         a file or folder in SAFELIGHT_HOME/vaes, a version, one in a linked folder (`registered_models.py`)
my-encoder     a CLIP or a T5: a file, or a folder with a config.json, in SAFELIGHT_HOME/text_encoders
./some/path    such a file or folder anywhere
my-model       a checkpoint, whose autoencoder or text encoders are used
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import CorruptModel, InvalidRequest, UnknownModel, UnknownPart
from safelight.models.checkpoints.catalogue import SINGLE, Catalogue
from safelight.models.checkpoints.digest import digest_files
from safelight.models.checkpoints.families import Description, describe, tokenizer_of
from safelight.models.weights.identify import identify
from safelight.models.weights.safetensors_file import NETWORK, TEXT_ENCODER, read_header, weight_files
from safelight.spec.parts import PartName, PinnedPart

STEMS: Mapping[PartName, str] = {"vae": NETWORK, "text_encoder": TEXT_ENCODER}


@dataclass(frozen=True, slots=True)
class PartSource:
    path: Path
    """Path of a checkpoint, or of a file or folder that holds only the part."""
    digest: str
    checkpoint: Description | None = None


@dataclass(frozen=True, slots=True)
class PartFolder:
    catalogue: Catalogue
    """If its `listed_only` is set, paths are not accepted here either."""

    def paths(self, part: PartName) -> dict[str, Path]:
        """Return every part of the kind by name; if a folder and a file have one name, the folder."""
        if part == "vae":
            return self.catalogue.files("vae")
        folder = self.catalogue.home / f"{part}s"
        files = {path.name.removesuffix(SINGLE): path for path in folder.glob(f"*{SINGLE}")}
        folders = {config.parent.name: config.parent for config in folder.glob("*/config.json")}
        return dict(sorted((files | folders).items()))

    def find(self, part: PartName, name: str) -> PartSource:
        """
        Raises:
            UnknownPart: nothing has that name.
            UnsafeFile, CorruptModel, UnsupportedOption: the file is no such part.
        """
        if path := self.listed(part, name) or self.at_path(Path(name)):
            return PartSource(path, self.sum(standalone_files(path, part)))
        try:
            description = describe(self.catalogue.find(name))
        except UnknownModel:
            raise UnknownPart(part, name[:200], [*self.paths(part), *self.catalogue.names()]) from None
        return PartSource(description.path, self.sum(checkpoint_files(description, part)), description)

    def listed(self, part: PartName, name: str) -> Path | None:
        if part == "vae":
            return self.catalogue.listed(name, "vae")
        known = self.paths(part)
        return known.get(name) or known.get(name.removesuffix(SINGLE))

    def at_path(self, path: Path) -> Path | None:
        """Return the path if a single part is there and the catalogue accepts paths."""
        try:
            if self.catalogue.listed_only:
                return None
            if path.is_dir():
                return path if (path / "config.json").is_file() else None
            if path.suffix != SINGLE or not path.is_file():
                return None
        except (OSError, ValueError):  # longer than a path can be, or with a NUL in it
            return None
        identity = identify(read_header(path))
        return None if identity is not None and identity.kind == "checkpoint" else path

    def pin(self, part: PartName, name: str) -> PinnedPart:
        return PinnedPart(name=name, digest=self.find(part, name).digest)

    def pinned(self, part: PartName, pin: PinnedPart) -> PartSource:
        """Return the part that a spec pinned.

        Raises:
            InvalidRequest: the name now refers to another file, and no version has that digest.
        """
        source = self.find(part, pin.name)
        if source.digest != pin.digest:
            if part == "vae" and (version := self.catalogue.version(pin.digest, "vae")):
                return PartSource(version, pin.digest)
            raise InvalidRequest(
                f"{part} {pin.name!r} has digest {source.digest[:10]} here, but {pin.digest[:10]} in the spec: "
                "the picture would differ"
            )
        return source

    def files(self, part: PartName, source: PartSource) -> list[Path]:
        """Return the files that are read."""
        description = source.checkpoint
        return [
            *(
                standalone_files(source.path, part) if description is None else checkpoint_files(description, part)
            ).values()
        ]

    def sum(self, files: Mapping[str, Path]) -> str:
        return digest_files(files, cache=self.catalogue.sums)


def standalone_files(path: Path, part: PartName) -> dict[str, Path]:
    if path.is_file():
        return {path.name: path}
    return {file.name: file for file in (path / "config.json", *weight_files(path, STEMS[part]))}


def checkpoint_files(description: Description, part: PartName) -> dict[str, Path]:
    """Return the checkpoint's files that the part is read from; for text encoders, also those of the tokenizers."""
    if description.is_file:
        return {description.path.name: description.path}
    folders = ["vae"] if part == "vae" else list(description.prompt_encoders)
    files = [file for name in folders for file in standalone_files(description.path / name, part).values()]
    if part == "text_encoder":
        for name in map(tokenizer_of, folders):
            files += [path for path in (description.path / name).glob("*") if path.suffix in (".json", ".txt")]
    if missing := [file for file in files if not file.is_file()]:
        raise CorruptModel(f"{missing[0]} is missing")
    return {file.relative_to(description.path).as_posix(): file for file in files}
