"""LoRAs as an effect: each file is loaded once for a model, and kept until its memory is needed (`memory.py`)."""

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import nn

from safelight.errors import CorruptModel, InvalidRequest, UnsupportedOption
from safelight.models.adapters.effect import Active, Effect, Moment
from safelight.models.adapters.lora import Lora, fit, load_lora
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.families import Description
from safelight.models.hooks.adapters import Adapters, Applied, Row
from safelight.models.networks.components import Outline
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.models.networks.size_estimate import lora_bytes
from safelight.models.weights.lora_file import LoraFile, read_lora
from safelight.prompts.lora_tags import TAG, extract_loras
from safelight.spec import Denoised, Draft, LoraRequest
from safelight.spec.effects import MAX_LORAS, PinnedLora
from safelight.spec.marks import Mark, marked


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


@dataclass(frozen=True, slots=True)
class ActiveLoras(Active):
    """The LoRAs of one job."""

    loras: tuple[ActiveLora, ...]

    def hook(self, network: nn.Module) -> Adapters:
        return Adapters(network)

    def row(self, moment: Moment) -> Row:
        return tuple(applied for lora in self.loras for applied in lora.on_unet(moment.progress))

    def on_text(self) -> tuple[Row, ...]:
        by_lora = [lora.on_text() for lora in self.loras]
        return tuple(tuple(applied for row in rows for applied in row) for rows in zip(*by_lora, strict=True))

    def text_key(self) -> Hashable:
        # A LoRA changes what all words mean, those of the negative prompt too.
        return tuple((lora.lora.digest, lora.text_weight) for lora in self.loras if any(lora.on_text()))

    def stacked_bytes(self) -> Mapping[Hashable, int]:
        return {lora.lora.digest: lora.lora.size_bytes for lora in self.loras}


@dataclass(slots=True)
class LoraEffect(Effect):
    catalogue: Catalogue
    loaded: dict[tuple[str, ...], Lora] = field(default_factory=dict[tuple[str, ...], Lora])
    """By the digests of LoRA, model and its text encoders."""
    fitting: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """The digests of LoRAs and models of which it is known that they go together."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    name: str = "loras"

    def used(self, draft: Draft | Denoised) -> bool:
        tagged = isinstance(draft, Draft) and any(TAG.search(text) for text in marked(draft, Mark.PROMPT))
        return bool(draft.loras) or tagged

    def see(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def pin(self, draft: Draft, model: Description) -> Draft:
        """The LoRAs of the field and those of the prompt's tags; the tags leave the prompt."""
        del model
        prompt, tagged = extract_loras(draft.prompt)
        others = [("negative_prompt", draft.negative_prompt), *(("regions", one.prompt) for one in draft.regions)]
        for name, text in others:
            if extract_loras(text)[1]:
                raise InvalidRequest(f"{name}: <lora:...> belongs in the prompt; it acts on the whole picture")
        requests = (*draft.loras, *tagged)
        if not requests:
            return draft
        if len(requests) > MAX_LORAS:
            raise InvalidRequest(f"at most {MAX_LORAS} LoRAs in one picture, not {len(requests)}")
        return draft.model_copy(update={"prompt": prompt, "loras": tuple(map(self.pin_one, requests))})

    def pin_one(self, request: LoraRequest) -> PinnedLora:
        """The request with the digest of the file that its name stands for now.

        Raises:
            UnknownLora, InvalidRequest: nothing has that name, or it is not the file that the request names.
        """
        if request.digest is not None:
            self.catalogue.pinned(request.name, request.digest, "lora")
            return PinnedLora.model_validate(request.model_dump())
        digest = self.catalogue.sum(self.catalogue.find(request.name, "lora"))
        return PinnedLora.model_validate(request.model_dump() | {"digest": digest})

    def load(self, spec: Denoised, model: Model, pictures: Mapping[str, Image.Image]) -> ActiveLoras:
        """
        Raises:
            UnknownLora, InvalidRequest: gone, or another file by now.
            UnsafeFile, CorruptModel, IncompatibleLora: as `load_lora`.
            UnsupportedOption: weights by block, for a network that has none.
        """
        del pictures
        return ActiveLoras(self.load_all(spec.loras, model))

    def load_all(self, loras: Sequence[PinnedLora], model: Model) -> tuple[ActiveLora, ...]:
        require_blocks(loras, model.description, name=model.name)
        return tuple(ActiveLora(self.get(pinned, model), pinned) for pinned in loras)

    def require_fit(self, spec: Denoised, outline: Outline) -> None:
        """Each file is read once for a model."""
        require_blocks(spec.loras, outline.description, name=outline.name)
        for pinned in spec.loras:
            if (pinned.digest, spec.model_digest) not in self.fitting:
                file = read_lora(self.catalogue.pinned(pinned.name, pinned.digest, "lora"))
                require_finite(file, name=pinned.name)
                model = f"{outline.name} ({outline.description.family.name})"
                fit(file, outline.networks, name=pinned.name, model=model)
                self.fitting.add((pinned.digest, spec.model_digest))

    def get(self, pinned: PinnedLora, model: Model) -> Lora:
        key = pinned.digest, model.digest, model.text_digest
        with self.lock:
            if key not in self.loaded:
                path = self.catalogue.pinned(pinned.name, pinned.digest, "lora")
                self.loaded[key] = load_lora(path, model, name=pinned.name, digest=pinned.digest)
            return self.loaded[key]

    def allocations(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        return [self.allocation(pinned, spec.model_digest, placement) for pinned in spec.loras]

    def allocation(self, pinned: PinnedLora, model_digest: str, placement: Placement) -> Allocation:
        key = pinned.digest, model_digest
        size = lora_bytes(self.catalogue.pinned(pinned.name, pinned.digest, "lora"), placement)
        return Allocation(key=key, kind="lora", name=pinned.name, size_bytes=size, drop=lambda: self.drop(key))

    def drop(self, key: tuple[str, str]) -> None:
        """Forget it; jobs that use it keep it."""
        for each in [each for each in list(self.loaded) if each[:2] == key]:
            self.loaded.pop(each, None)


def require_blocks(uses: Sequence[PinnedLora], description: Description, *, name: str) -> None:
    """Raises UnsupportedOption where a model that is no UNet is given weights by a UNet's blocks."""
    for pinned in uses:
        if description.family.network != "unet" and (pinned.blocks or {}).keys() - {"BASE"}:
            raise UnsupportedOption("blocks", f"LoRA {pinned.name}: {name} has no UNet, and so none of these blocks")


def require_finite(file: LoraFile, *, name: str) -> None:
    """Raises CorruptModel where numbers in the file are none."""
    for target, tensors in file.layers.items():
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise CorruptModel(f"LoRA {name}: {target.name} holds numbers that are not finite")
