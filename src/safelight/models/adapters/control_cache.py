"""The ControlNets, T2I-Adapters, IP-Adapters and image encoders in memory.

Each is loaded once, and counts among the weights in memory (`memory.py`), which says when it goes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image

from safelight.errors import IncompatibleControl
from safelight.models.adapters import ip_adapter
from safelight.models.adapters.control import ControlInput, Features, Net, Row, load_control, require_whole
from safelight.models.adapters.control_file import describe_control, hint_kind
from safelight.models.adapters.ip_adapter import PromptImageEncoder, load_adapter, load_encoder
from safelight.models.adapters.ip_file import require_adapter
from safelight.models.checkpoints.control_folder import ControlFolder, Kind
from safelight.models.checkpoints.families import Description
from safelight.models.hooks import picture_prompts
from safelight.models.hooks.picture_prompts import PromptedRow, Tokens, cross_attentions
from safelight.models.networks.components import Outline
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.models.networks.size_estimate import control_bytes
from safelight.spec import (
    ControlRequest,
    Denoised,
    PicturePromptRequest,
    PinnedControl,
    PinnedPicturePrompt,
)

KEPT_PICTURES = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ActiveControl:
    """A network in memory, and how the spec uses it."""

    net: Net
    use: PinnedControl

    def on(self, features: Features, *, step: int, steps: int, negative: bool) -> Row:
        """In this step; `negative`: for the row that guidance leads away from."""
        told_apart = self.use.mode == "control" or getattr(self.net, "pools", False)
        if not self.use.holds(step, steps) or not self.use.weight or (negative and told_apart):
            return ()
        soft = self.use.mode != "balanced"
        return (ControlInput(self.net, features, self.use.weight, soft=soft, kind=self.use.hint_kind),)


@dataclass(frozen=True, slots=True)
class ActivePicturePrompt:
    """A picture as an adapter reads it, and how the spec uses it."""

    positive: Tokens
    negative: Tokens
    use: PinnedPicturePrompt

    def on(self, *, step: int, steps: int, negative: bool) -> picture_prompts.Row:
        if not self.use.holds(step, steps) or not self.use.weight:
            return ()
        return (PromptedRow(self.negative if negative else self.positive, self.use.weight),)


@dataclass(frozen=True, slots=True)
class ActiveControls:
    """What leads one job beside its words."""

    controls: tuple[ActiveControl, ...] = ()
    pictures: tuple[ActivePicturePrompt, ...] = ()


NOTHING = ActiveControls()


@dataclass(slots=True)
class ControlCache:
    folder: ControlFolder
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    """By the digests of its files and of the model; an image encoder serves all models of a placement."""
    read: OrderedDict[tuple[str, ...], tuple[Tokens, Tokens]] = field(
        default_factory=OrderedDict[tuple[str, ...], tuple[Tokens, Tokens]]
    )
    """Pictures as adapters read them."""
    whole: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """The digests of controls and models of which it is known that they go together."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def pin(self, wish: ControlRequest, model: Description, *, model_name: str) -> dict[str, Any]:
        """The digest of what the wish names, and the kind of its hint where the net must be told; reads no weights.

        Raises:
            UnknownControl, InvalidRequest: it is not here, or another one by now; nothing says what its hint shows.
            IncompatibleControl: it is for another family.
            UnsafeFile, CorruptModel, UnsupportedOption: it is no ControlNet or T2I-Adapter.
        """
        path = self.folder.path("control", wish.model)
        about = describe_control(path, model, name=wish.model, model_name=model_name)
        digest = self.folder.find("control", wish.model, digest=wish.digest)[1]
        return {"digest": digest, "hint_kind": hint_kind(wish, about)}

    def require_whole(self, use: PinnedControl, outline: Outline, model_digest: str) -> None:
        """Raises what loading it for this model would, from headers; each is looked at once for a model."""
        if (use.digest, model_digest) not in self.whole:
            path, _ = self.folder.find("control", use.model, digest=use.digest)
            require_whole(describe_control(path, outline.description, name=use.model, model_name=outline.name))
            self.whole.add((use.digest, model_digest))

    def require_picture_whole(self, use: PinnedPicturePrompt, outline: Outline, model_digest: str) -> None:
        """The same for an IP-Adapter."""
        if (use.digest, model_digest) not in self.whole:
            path, _ = self.folder.find("ip-adapter", use.model, digest=use.digest)
            kind = require_adapter(path, outline.description, name=use.model, model_name=outline.name)
            ip_adapter.require_whole(path, kind, cross=cross_attentions(outline.unet), name=use.model)
            self.whole.add((use.digest, model_digest))

    def pin_picture(self, wish: PicturePromptRequest, model: Description, *, model_name: str) -> dict[str, Any]:
        """The same for an IP-Adapter and its image encoder."""
        path = self.folder.path("ip-adapter", wish.model)
        require_adapter(path, model, name=wish.model, model_name=model_name)
        encoder = self.folder.encoder_for(path, wish.encoder)
        return {
            "digest": self.folder.find("ip-adapter", wish.model, digest=wish.digest)[1],
            "encoder": encoder,
            "encoder_digest": self.folder.find("image-encoder", encoder, digest=wish.encoder_digest)[1],
        }

    def needs(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        """What these take of the memory for weights."""
        wanted: list[tuple[Kind, str, str, str]] = [
            ("control", use.model, use.digest, spec.model_digest) for use in spec.controls
        ]
        for use in spec.picture_prompts:
            wanted.append(("ip-adapter", use.model, use.digest, spec.model_digest))
            wanted.append(("image-encoder", use.encoder, use.encoder_digest, str(placement)))
        return [self.need(kind, name, (digest, to), placement) for kind, name, digest, to in wanted]

    def need(self, kind: Kind, name: str, key: tuple[str, str], placement: Placement) -> Allocation:
        path, _ = self.folder.find(kind, name, digest=key[0])
        size = control_bytes(self.folder.files(kind, path), placement)
        return Allocation(key=key, kind=kind, name=name, size_bytes=size, drop=lambda: self.drop(key))

    def drop(self, key: tuple[str, str]) -> None:
        """Forget it, and what was read with it; jobs that are led by it keep it."""
        with self.lock:
            self.loaded.pop(key, None)
            for read in [read for read in self.read if key[0] in read]:
                del self.read[read]

    def lead(self, spec: Denoised, model: Model, pictures: Mapping[str, Image.Image]) -> ActiveControls:
        """All that the spec names, in memory; its picture prompts read."""
        with self.lock:
            return ActiveControls(
                controls=tuple(ActiveControl(self.control(use, model), use) for use in spec.controls),
                pictures=tuple(self.picture(use, model, pictures[use.image]) for use in spec.picture_prompts),
            )

    def control(self, use: PinnedControl, model: Model) -> Net:
        def load() -> Net:
            path, _ = self.folder.find("control", use.model, digest=use.digest)
            about = describe_control(path, model.description, name=use.model, model_name=model.name)
            return load_control(about, model.placement, model.unet)

        return self.kept((use.digest, model.digest), load)

    def picture(self, use: PinnedPicturePrompt, model: Model, image: Image.Image) -> ActivePicturePrompt:
        key = use.digest, use.encoder_digest, model.digest, use.image
        if key not in self.read:
            self.read[key] = self.read_picture(use, model, image)
        self.read.move_to_end(key)
        while len(self.read) > KEPT_PICTURES:
            self.read.popitem(last=False)
        return ActivePicturePrompt(*self.read[key], use)

    @torch.inference_mode()
    def read_picture(self, use: PinnedPicturePrompt, model: Model, image: Image.Image) -> tuple[Tokens, Tokens]:
        def load_ip() -> Any:
            path, _ = self.folder.find("ip-adapter", use.model, digest=use.digest)
            kind = require_adapter(path, model.description, name=use.model, model_name=model.name)
            cross = cross_attentions(model.unet)
            return load_adapter(path, kind, cross=cross, name=use.model, placement=model.placement)

        def load_eye() -> PromptImageEncoder:
            folder, _ = self.folder.find("image-encoder", use.encoder, digest=use.encoder_digest)
            return load_encoder(folder, model.placement)

        adapter = self.kept((use.digest, model.digest), load_ip)
        encoder = self.kept((use.encoder_digest, str(model.placement)), load_eye)
        states = encoder.read(image, patches=adapter.reads_patches)
        if states[0].shape[-1] != adapter.encoder_width:
            why = f"it reads {adapter.encoder_width} numbers, and the encoder says {states[0].shape[-1]}: name another"
            raise IncompatibleControl(use.model, why, model=f"image encoder {use.encoder}")
        positive, negative = (Tokens(adapter, adapter.projection(some)[0]) for some in states)
        return positive, negative

    def kept(self, key: tuple[str, str], load: Callable[[], T]) -> T:
        if key not in self.loaded:
            self.loaded[key] = load()
        found: T = self.loaded[key]
        return found
