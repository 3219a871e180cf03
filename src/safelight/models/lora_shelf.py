"""The LoRAs in memory: each loaded once for a model, and dropped when others come and it was not used for longest."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from safelight.errors import UnsupportedOption
from safelight.models.adapters import Applied, Row
from safelight.models.load import Model
from safelight.models.lora import Lora, load_lora
from safelight.models.lora_folder import LoraFolder, require_same
from safelight.spec import LoraUse

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
    folder: LoraFolder
    limit_bytes: int = LIMIT_BYTES
    loaded: OrderedDict[tuple[str, ...], Lora] = field(default_factory=OrderedDict[tuple[str, ...], Lora])
    """By the digests of LoRA, model and its text encoders, the one used last at the end."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wear(self, uses: Sequence[LoraUse], model: Model) -> tuple[Worn, ...]:
        """In memory and ready for the model.

        Raises:
            UnknownLora, InvalidRequest: gone, or another file by now.
            UnsafeFile, CorruptModel, IncompatibleLora: as `load_lora`.
            UnsupportedOption: weights by block, for a network that has none.
        """
        for use in uses:
            if model.description.family.network != "unet" and (use.blocks or {}).keys() - {"BASE"}:
                raise UnsupportedOption("blocks", f"LoRA {use.name}: {model.name} is no UNet and has no such blocks")
        return tuple(Worn(self.get(use, model), use) for use in uses)

    def get(self, use: LoraUse, model: Model) -> Lora:
        key = use.digest, model.digest, model.text_digest
        with self.lock:
            if key not in self.loaded:
                path, digest = self.folder.find(use.name)
                require_same(use, digest)
                self.loaded[key] = load_lora(path, model, name=use.name, digest=digest)
            self.loaded.move_to_end(key)
            lora = self.loaded[key]
            while len(self.loaded) > 1 and sum(kept.size_bytes for kept in self.loaded.values()) > self.limit_bytes:
                self.loaded.popitem(last=False)
            return lora
