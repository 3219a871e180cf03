"""The LoRAs there are, and those in memory: found by name, pinned by digest, loaded once, dropped when others come."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safelight.errors import CorruptModel, InvalidRequest, UnknownLora
from safelight.models.adapters import Applied, Row
from safelight.models.digest import file_sum, read_sums, remember_sums
from safelight.models.load import Model
from safelight.models.lora import Lora, load_lora
from safelight.spec import LoraUse, LoraWish

LIMIT_BYTES = 2 * 2**30
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Worn:
    """A LoRA in memory, and how the spec uses it."""

    lora: Lora
    use: LoraUse

    def on_unet(self, progress: float) -> Row:
        """At this fraction of the walk."""
        acts = self.use.start <= progress < self.use.end
        if not (acts and self.use.weight and self.lora.unet.terms):
            return ()
        blocks = tuple(sorted((self.use.blocks or {}).items()))
        return (Applied(self.lora.unet, self.use.weight, blocks),)

    def on_text(self) -> tuple[Row, ...]:
        """For each text encoder."""
        weight = self.text_weight
        return tuple(
            (Applied(adapter, weight),) if weight and adapter.terms else () for adapter in self.lora.text_encoders
        )

    @property
    def text_weight(self) -> float:
        use = self.use
        return (use.weight if use.text_weight is None else use.text_weight) * (use.blocks or {}).get("BASE", 1.0)


@dataclass(slots=True)
class LoraShelf:
    folder: Path
    """LoRA files, in folders of any depth; a name is a file's, without suffix."""
    sums: Path
    limit_bytes: int = LIMIT_BYTES
    loaded: OrderedDict[tuple[str, str], Lora] = field(default_factory=OrderedDict[tuple[str, str], Lora])
    """By the digests of LoRA and model, the one used last at the end."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def paths(self) -> dict[str, Path]:
        """Every LoRA by name; of two of one name, the first in the order of folders."""
        found = sorted(self.folder.rglob(f"*{SUFFIX}"), reverse=True)
        return dict(sorted({path.name.removesuffix(SUFFIX): path for path in found}.items()))

    def find(self, name: str) -> tuple[Path, str]:
        """The file that a name or a path stands for, and its sha256."""
        path = Path(name) if is_path(name) else self.paths().get(name.removesuffix(SUFFIX))
        if path is None or not path.is_file():
            raise UnknownLora(name, list(self.paths()))
        try:
            status = path.stat()
            key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
            known = read_sums(self.sums)
            if key not in known:
                known[key] = file_sum(path)
                remember_sums(self.sums, known)
        except OSError as error:
            raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None
        return path, known[key]

    def pin(self, wish: LoraWish) -> LoraUse:
        """The wish with the digest of the file that its name stands for now."""
        _, digest = self.find(wish.name)
        self.require(wish, digest)
        return LoraUse.model_validate(wish.model_dump() | {"digest": digest})

    def wear(self, uses: Sequence[LoraUse], model: Model) -> tuple[Worn, ...]:
        """In memory and ready for the model.

        Raises:
            UnknownLora, InvalidRequest: gone, or another file by now.
            UnsafeFile, CorruptModel, IncompatibleLora: as `load_lora`.
        """
        return tuple(Worn(self.get(use, model), use) for use in uses)

    def get(self, use: LoraUse, model: Model) -> Lora:
        key = use.digest, model.digest
        with self.lock:
            if key not in self.loaded:
                path, digest = self.find(use.name)
                self.require(use, digest)
                self.loaded[key] = load_lora(path, model, name=use.name, digest=digest)
            self.loaded.move_to_end(key)
            lora = self.loaded[key]
            while len(self.loaded) > 1 and sum(kept.size_bytes for kept in self.loaded.values()) > self.limit_bytes:
                self.loaded.popitem(last=False)
            return lora

    def require(self, wish: LoraWish, digest: str) -> None:
        if wish.digest not in (None, digest):
            raise InvalidRequest(
                f"LoRA {wish.name!r} is {digest[:10]} here and {str(wish.digest)[:10]} in the spec: "
                "the picture would differ"
            )


def is_path(name: str) -> bool:
    return name.endswith(SUFFIX) and ("/" in name or "\\" in name)
