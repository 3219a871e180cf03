"""The LoRAs in memory: each loaded once for a model, and kept until its room is needed (`memory.py`)."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from safelight.errors import CorruptModel, SafelightError, UnsupportedOption
from safelight.models.adapters.lora import Lora, fit, load_lora
from safelight.models.adapters.lora_hash import lora_hash
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.families import Description
from safelight.models.hooks.adapters import Applied, Row
from safelight.models.networks.components import Outline
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.models.networks.size_estimate import lora_bytes
from safelight.models.weights.lora_file import LoraFile, read_lora
from safelight.spec import LoraRequest
from safelight.spec.effects import PinnedLora


@dataclass(frozen=True, slots=True)
class ActiveLora:
    """A LoRA in memory, and how the spec uses it."""

    lora: Lora
    pinned: PinnedLora

    def on_unet(self, progress: float) -> Row:
        """At this fraction of the walk."""
        acts = self.pinned.start <= progress < self.pinned.end
        if not (acts and self.pinned.weight and self.lora.unet.terms):
            return ()
        blocks = tuple(sorted((self.pinned.blocks or {}).items()))
        return (Applied(self.lora.unet, self.pinned.weight, blocks),)

    def on_text(self) -> tuple[Row, ...]:
        """For each text encoder."""
        weight = self.text_weight
        return tuple(
            (Applied(adapter, weight),) if weight and adapter.terms else () for adapter in self.lora.text_encoders
        )

    @property
    def text_weight(self) -> float:
        pinned = self.pinned
        return (pinned.weight if pinned.text_weight is None else pinned.text_weight) * (pinned.blocks or {}).get(
            "BASE", 1.0
        )


@dataclass(slots=True)
class LoraCache:
    catalogue: Catalogue
    loaded: dict[tuple[str, ...], Lora] = field(default_factory=dict[tuple[str, ...], Lora])
    """By the digests of LoRA, model and its text encoders."""
    fitting: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """The digests of LoRAs and models of which it is known that they go together."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pin(self, request: LoraRequest) -> PinnedLora:
        """The wish with the digest of the file that its name stands for now.

        Raises:
            UnknownLora, InvalidRequest: nothing has that name, or it is not the file that the wish asks for.
        """
        if request.digest is not None:
            self.catalogue.pinned(request.name, request.digest, "lora")
            return PinnedLora.model_validate(request.model_dump())
        digest = self.catalogue.sum(self.catalogue.find(request.name, "lora"))
        return PinnedLora.model_validate(request.model_dump() | {"digest": digest})

    def hashes(self, uses: Sequence[PinnedLora]) -> dict[str, str]:
        """What AUTOMATIC1111 calls each file, by our digest of it; without those that are gone."""
        found: dict[str, str] = {}
        for pinned in uses:
            with suppress(SafelightError, OSError):
                path = self.catalogue.pinned(pinned.name, pinned.digest, "lora")
                found[pinned.digest] = lora_hash(path, cache=self.catalogue.sums)
        return found

    def load(self, uses: Sequence[PinnedLora], model: Model) -> tuple[ActiveLora, ...]:
        """In memory and ready for the model.

        Raises:
            UnknownLora, InvalidRequest: gone, or another file by now.
            UnsafeFile, CorruptModel, IncompatibleLora: as `load_lora`.
            UnsupportedOption: weights by block, for a network that has none.
        """
        require_blocks(uses, model.description, name=model.name)
        return tuple(ActiveLora(self.get(pinned, model), pinned) for pinned in uses)

    def require_fit(self, uses: Sequence[PinnedLora], outline: Outline, model_digest: str) -> None:
        """Raises as `wear` would, before the model is in memory; each file is read once for a model."""
        require_blocks(uses, outline.description, name=outline.name)
        for pinned in uses:
            if (pinned.digest, model_digest) not in self.fitting:
                file = read_lora(self.catalogue.pinned(pinned.name, pinned.digest, "lora"))
                require_finite(file, name=pinned.name)
                model = f"{outline.name} ({outline.description.family.name})"
                fit(file, outline.networks, name=pinned.name, model=model)
                self.fitting.add((pinned.digest, model_digest))

    def get(self, pinned: PinnedLora, model: Model) -> Lora:
        key = pinned.digest, model.digest, model.text_digest
        with self.lock:
            if key not in self.loaded:
                path = self.catalogue.pinned(pinned.name, pinned.digest, "lora")
                self.loaded[key] = load_lora(path, model, name=pinned.name, digest=pinned.digest)
            return self.loaded[key]

    def allocation(self, pinned: PinnedLora, model_digest: str, placement: Placement) -> Allocation:
        """What it takes of the memory for weights."""
        key = pinned.digest, model_digest
        size = lora_bytes(self.catalogue.pinned(pinned.name, pinned.digest, "lora"), placement)
        return Allocation(key=key, kind="lora", name=pinned.name, size_bytes=size, drop=lambda: self.drop(key))

    def drop(self, key: tuple[str, str]) -> None:
        """Forget it; jobs that wear it keep it."""
        for each in [each for each in list(self.loaded) if each[:2] == key]:
            self.loaded.pop(each, None)


def require_blocks(uses: Sequence[PinnedLora], description: Description, *, name: str) -> None:
    """Raises UnsupportedOption where a model that is no UNet is given weights by a UNet's blocks."""
    for pinned in uses:
        if description.family.network != "unet" and (pinned.blocks or {}).keys() - {"BASE"}:
            raise UnsupportedOption("blocks", f"LoRA {pinned.name}: {name} is no UNet and has no such blocks")


def require_finite(file: LoraFile, *, name: str) -> None:
    """Raises CorruptModel where numbers in the file are none."""
    for target, tensors in file.layers.items():
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise CorruptModel(f"LoRA {name}: {target.name} holds numbers that are not finite")
