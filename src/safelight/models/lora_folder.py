"""Which LoRA a name stands for: a file under SAFELIGHT_HOME/loras, or one named by its path. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from safelight.errors import InvalidRequest, UnknownLora
from safelight.models.digest import sums_of
from safelight.spec import LoraUse, LoraWish

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class LoraFolder:
    folder: Path
    """LoRA files, in folders of any depth; a name is a file's, without suffix."""
    sums: Path
    """Where the files' checksums are remembered."""
    by_path: bool = True
    """Whether a caller may name a file anywhere; not where callers are strangers."""

    def paths(self) -> dict[str, Path]:
        """Every LoRA by name; of two of one name, the first in the order of folders."""
        found = sorted(self.folder.rglob(f"*{SUFFIX}"), reverse=True)
        return dict(sorted({path.name.removesuffix(SUFFIX): path for path in found}.items()))

    def path(self, name: str) -> Path:
        known = self.paths()
        try:
            path = Path(name) if is_path(name) and self.by_path else known.get(name.removesuffix(SUFFIX))
            if path is not None and path.is_file():
                return path
        except (OSError, ValueError):  # longer than a path can be, or with a NUL in it
            pass
        raise UnknownLora(name[:200], list(known))

    def find(self, name: str) -> tuple[Path, str]:
        """The file, and its sha256."""
        path = self.path(name)
        [digest] = sums_of([path], cache=self.sums)
        return path, digest

    def pin(self, wish: LoraWish) -> LoraUse:
        """The wish with the digest of the file that its name stands for now."""
        _, digest = self.find(wish.name)
        require_same(wish, digest)
        return LoraUse.model_validate(wish.model_dump() | {"digest": digest})


def require_same(wish: LoraWish, digest: str) -> None:
    if wish.digest not in (None, digest):
        raise InvalidRequest(
            f"LoRA {wish.name!r} is {digest[:10]} here, {str(wish.digest)[:10]} in the spec: the picture would differ"
        )


def is_path(name: str) -> bool:
    return name.endswith(SUFFIX) and ("/" in name or "\\" in name)
