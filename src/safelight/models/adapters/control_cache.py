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
from safelight.spec import ControlRequest, Denoised, PicturePromptRequest
from safelight.spec.effects import PinnedControl, PinnedPicturePrompt

KEPT_PICTURES = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ActiveControl:
    """A network in memory, and how the spec uses it."""

    net: Net
    pinned: PinnedControl

    def on(self, features: Features, *, step: int, steps: int, negative: bool) -> Row:
        """In this step; `negative`: for the row that guidance leads away from."""
        told_apart = self.pinned.mode == "control" or getattr(self.net, "pools", False)
        if not self.pinned.holds(step, steps) or not self.pinned.weight or (negative and told_apart):
            return ()
        soft = self.pinned.mode != "balanced"
        return (ControlInput(self.net, features, self.pinned.weight, soft=soft, kind=self.pinned.hint_kind),)


@dataclass(frozen=True, slots=True)
class ActivePicturePrompt:
    """A picture as an adapter reads it, and how the spec uses it."""

    positive: Tokens
    negative: Tokens
    pinned: PinnedPicturePrompt

    def on(self, *, step: int, steps: int, negative: bool) -> picture_prompts.Row:
        if not self.pinned.holds(step, steps) or not self.pinned.weight:
            return ()
        return (PromptedRow(self.negative if negative else self.positive, self.pinned.weight),)


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

    def pin(self, request: ControlRequest, model: Description, *, model_name: str) -> dict[str, Any]:
        """The digest of what the wish names, and the kind of its hint where the net must be told; reads no weights.

        Raises:
            UnknownControl, InvalidRequest: it is not here, or another one by now; nothing says what its hint shows.
            IncompatibleControl: it is for another family.
            UnsafeFile, CorruptModel, UnsupportedOption: it is no ControlNet or T2I-Adapter.
        """
        path = self.folder.path("control", request.model)
        about = describe_control(path, model, name=request.model, model_name=model_name)
        digest = self.folder.find("control", request.model, digest=request.digest)[1]
        return {"digest": digest, "hint_kind": hint_kind(request, about)}

    def require_whole(self, pinned: PinnedControl, outline: Outline, model_digest: str) -> None:
        """Raises what loading it for this model would, from headers; each is looked at once for a model."""
        if (pinned.digest, model_digest) not in self.whole:
            path, _ = self.folder.find("control", pinned.model, digest=pinned.digest)
            require_whole(describe_control(path, outline.description, name=pinned.model, model_name=outline.name))
            self.whole.add((pinned.digest, model_digest))

    def require_picture_whole(self, pinned: PinnedPicturePrompt, outline: Outline, model_digest: str) -> None:
        """The same for an IP-Adapter."""
        if (pinned.digest, model_digest) not in self.whole:
            path, _ = self.folder.find("ip-adapter", pinned.model, digest=pinned.digest)
            kind = require_adapter(path, outline.description, name=pinned.model, model_name=outline.name)
            ip_adapter.require_whole(path, kind, cross=cross_attentions(outline.unet), name=pinned.model)
            self.whole.add((pinned.digest, model_digest))

    def pin_picture(self, request: PicturePromptRequest, model: Description, *, model_name: str) -> dict[str, Any]:
        """The same for an IP-Adapter and its image encoder."""
        path = self.folder.path("ip-adapter", request.model)
        require_adapter(path, model, name=request.model, model_name=model_name)
        encoder = self.folder.encoder_for(path, request.encoder)
        return {
            "digest": self.folder.find("ip-adapter", request.model, digest=request.digest)[1],
            "encoder": encoder,
            "encoder_digest": self.folder.find("image-encoder", encoder, digest=request.encoder_digest)[1],
        }

    def allocations(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        """What these take of the memory for weights."""
        wanted: list[tuple[Kind, str, str, str]] = [
            ("control", pinned.model, pinned.digest, spec.model_digest) for pinned in spec.controls
        ]
        for pinned in spec.picture_prompts:
            wanted.append(("ip-adapter", pinned.model, pinned.digest, spec.model_digest))
            wanted.append(("image-encoder", pinned.encoder, pinned.encoder_digest, str(placement)))
        return [self.allocation(kind, name, (digest, to), placement) for kind, name, digest, to in wanted]

    def allocation(self, kind: Kind, name: str, key: tuple[str, str], placement: Placement) -> Allocation:
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
                controls=tuple(ActiveControl(self.control(pinned, model), pinned) for pinned in spec.controls),
                pictures=tuple(self.picture(pinned, model, pictures[pinned.image]) for pinned in spec.picture_prompts),
            )

    def control(self, pinned: PinnedControl, model: Model) -> Net:
        def load() -> Net:
            path, _ = self.folder.find("control", pinned.model, digest=pinned.digest)
            about = describe_control(path, model.description, name=pinned.model, model_name=model.name)
            return load_control(about, model.placement, model.unet)

        return self.kept((pinned.digest, model.digest), load)

    def picture(self, pinned: PinnedPicturePrompt, model: Model, image: Image.Image) -> ActivePicturePrompt:
        key = pinned.digest, pinned.encoder_digest, model.digest, pinned.image
        if key not in self.read:
            self.read[key] = self.read_picture(pinned, model, image)
        self.read.move_to_end(key)
        while len(self.read) > KEPT_PICTURES:
            self.read.popitem(last=False)
        return ActivePicturePrompt(*self.read[key], pinned)

    @torch.inference_mode()
    def read_picture(self, pinned: PinnedPicturePrompt, model: Model, image: Image.Image) -> tuple[Tokens, Tokens]:
        def load_ip() -> Any:
            path, _ = self.folder.find("ip-adapter", pinned.model, digest=pinned.digest)
            kind = require_adapter(path, model.description, name=pinned.model, model_name=model.name)
            cross = cross_attentions(model.unet)
            return load_adapter(path, kind, cross=cross, name=pinned.model, placement=model.placement)

        def load_eye() -> PromptImageEncoder:
            folder, _ = self.folder.find("image-encoder", pinned.encoder, digest=pinned.encoder_digest)
            return load_encoder(folder, model.placement)

        adapter = self.kept((pinned.digest, model.digest), load_ip)
        encoder = self.kept((pinned.encoder_digest, str(model.placement)), load_eye)
        states = encoder.read(image, patches=adapter.reads_patches)
        if states[0].shape[-1] != adapter.encoder_width:
            why = f"it reads {adapter.encoder_width} numbers, and the encoder says {states[0].shape[-1]}: name another"
            raise IncompatibleControl(pinned.model, why, model=f"image encoder {pinned.encoder}")
        positive, negative = (Tokens(adapter, adapter.projection(some)[0]) for some in states)
        return positive, negative

    def kept(self, key: tuple[str, str], load: Callable[[], T]) -> T:
        if key not in self.loaded:
            self.loaded[key] = load()
        found: T = self.loaded[key]
        return found
