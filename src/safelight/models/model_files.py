"""LoRAs, embeddings and other files beside checkpoints, by name: SAFELIGHT_HOME/models/<kind>s/<name>.safetensors."""

from pathlib import Path

from safelight.errors import InvalidRequest, UnsafeFile, nearest
from safelight.models.digest import sums_of
from safelight.models.recognise import Kind
from safelight.models.safetensors_file import PICKLE_SUFFIXES, WHY_NOT, conversion_of

SINGLE = ".safetensors"


class UnknownFile(InvalidRequest):
    status, code = 404, "unknown_file"

    def __init__(self, kind: Kind, name: str, known: list[str], folder: Path) -> None:
        there = f"known: {', '.join(known)}" if known else f"none is in {folder}"
        super().__init__(f"no {kind} named {name[:80]!r}{nearest(name, known)}; {there}")


def find_file(models: Path, kind: Kind, name: str, *, sums: Path | None = None) -> tuple[Path, str]:
    """The file of that name and its sha256; `models` is SAFELIGHT_HOME/models, `sums` where checksums are remembered.

    Raises:
        UnknownFile: there is none; the message suggests the nearest.
        UnsafeFile: it is there only in a format that can carry code.
    """
    folder = models / f"{kind}s"
    known = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix in (SINGLE, *PICKLE_SUFFIXES)}
    known |= {path.stem: path for path in sorted(folder.glob(f"*{SINGLE}"))}
    path = known.get(name) or known.get(name.removesuffix(SINGLE))
    if path is None:
        raise UnknownFile(kind, name, list(known), folder)
    if path.suffix != SINGLE:
        raise UnsafeFile(f"{path} is a pickle, {WHY_NOT}: {conversion_of(path)}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafeFile(f"{path} is a link that leads out of {folder}; put the file itself there")
    return path, sums_of([path], cache=sums)[0]
