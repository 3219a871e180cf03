"""The LoRAs in memory: each loaded once for a model, and dropped when others come and it was not used for longest."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from safelight.errors import SafelightError
from safelight.models.adapters import Applied, Row
from safelight.models.catalogue import Catalogue
from safelight.models.load import Model
from safelight.models.lora import Lora, load_lora
from safelight.models.lora_hash import lora_hash
from safelight.spec import LoraUse, LoraWish

LIMIT_BYTES = 2 * 2**30


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
    catalogue: Catalogue
    limit_bytes: int = LIMIT_BYTES
    loaded: OrderedDict[tuple[str, str], Lora] = field(default_factory=OrderedDict[tuple[str, str], Lora])
    """By the digests of LoRA and model, the one used last at the end."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pin(self, wish: LoraWish) -> LoraUse:
        """The wish with the digest of the file that its name stands for now.

        Raises:
            UnknownLora, InvalidRequest: nothing has that name, or it is not the file that the wish asks for.
        """
        if wish.digest is not None:
            self.catalogue.pinned(wish.name, wish.digest, "lora")
            return LoraUse.model_validate(wish.model_dump())
        digest = self.catalogue.sum(self.catalogue.find(wish.name, "lora"))
        return LoraUse.model_validate(wish.model_dump() | {"digest": digest})

    def hashes(self, uses: Sequence[LoraUse]) -> dict[str, str]:
        """What AUTOMATIC1111 calls each file, by our digest of it; without those that are gone."""
        found: dict[str, str] = {}
        for use in uses:
            with suppress(SafelightError, OSError):
                path = self.catalogue.pinned(use.name, use.digest, "lora")
                found[use.digest] = lora_hash(path, cache=self.catalogue.sums)
        return found

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
                path = self.catalogue.pinned(use.name, use.digest, "lora")
                self.loaded[key] = load_lora(path, model, name=use.name, digest=use.digest)
            self.loaded.move_to_end(key)
            lora = self.loaded[key]
            while len(self.loaded) > 1 and sum(kept.size_bytes for kept in self.loaded.values()) > self.limit_bytes:
                self.loaded.popitem(last=False)
            return lora
