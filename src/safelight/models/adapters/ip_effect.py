"""IP-Adapters as an effect: adapters and image encoders are loaded once, and each picture is read once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import nn

from safelight.errors import IncompatibleControl
from safelight.models.adapters import ip_adapter
from safelight.models.adapters.effect import Active, Effect, Moment
from safelight.models.adapters.ip_adapter import PromptImageEncoder, load_adapter, load_encoder
from safelight.models.adapters.ip_file import require_adapter
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder, Kind
from safelight.models.checkpoints.families import Description
from safelight.models.hooks.picture_prompts import IpAdapter, PicturePrompts, PromptedRow, Row, Tokens, cross_attentions
from safelight.models.networks.components import Outline
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.models.networks.size_estimate import control_bytes
from safelight.spec import Denoised, Draft, PicturePromptRequest
from safelight.spec.effects import PinnedPicturePrompt

MAX_PICTURES = 64
"""The latest pictures are remembered as their adapters read them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ActivePicturePrompt:
    """A picture as an adapter reads it, and how the spec uses it."""

    positive: Tokens
    negative: Tokens
    pinned: PinnedPicturePrompt

    def on(self, moment: Moment) -> Row:
        if not self.pinned.holds(moment.step, moment.steps) or not self.pinned.weight:
            return ()
        return (PromptedRow(self.negative if moment.negative else self.positive, self.pinned.weight),)


@dataclass(frozen=True, slots=True)
class ActivePicturePrompts(Active):
    """The picture prompts of one job."""

    pictures: tuple[ActivePicturePrompt, ...]

    def hook(self, network: nn.Module) -> PicturePrompts:
        return PicturePrompts(network)

    def row(self, moment: Moment) -> Row:
        return tuple(prompted for one in self.pictures for prompted in one.on(moment))


@dataclass(slots=True)
class IpAdapterEffect(Effect):
    catalogue: Catalogue
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    """By the digests of files and model; an image encoder serves all models of a placement."""
    read: OrderedDict[tuple[str, ...], tuple[Tokens, Tokens]] = field(
        default_factory=OrderedDict[tuple[str, ...], tuple[Tokens, Tokens]]
    )
    """Pictures as adapters read them."""
    whole: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Digests of adapters and models that are known to go together."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    name: str = "picture_prompts"

    @property
    def folder(self) -> ControlFolder:
        return ControlFolder(self.catalogue)

    def used(self, draft: Draft | Denoised) -> bool:
        return bool(draft.picture_prompts)

    def see(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def pin(self, draft: Draft, model: Description) -> Draft:
        """Each picture prompt with the digests of its adapter and its image encoder."""
        prompts = (self.pin_one(prompt, model, model_name=draft.model) for prompt in draft.picture_prompts)
        return draft.model_copy(update={"picture_prompts": tuple(prompts)})

    def pin_one(self, prompt: PicturePromptRequest, model: Description, *, model_name: str) -> PinnedPicturePrompt:
        """
        Raises:
            UnknownControl, InvalidRequest: adapter or encoder is not here, or another one by now.
            IncompatibleControl: it is for another family.
            UnsafeFile, CorruptModel, UnsupportedOption: it is no IP-Adapter.
        """
        path = self.folder.path("ip-adapter", prompt.model)
        require_adapter(path, model, name=prompt.model, model_name=model_name)
        encoder = self.folder.encoder_for(path, prompt.encoder)
        pins = {
            "digest": self.folder.find("ip-adapter", prompt.model, digest=prompt.digest)[1],
            "encoder": encoder,
            "encoder_digest": self.folder.find("image-encoder", encoder, digest=prompt.encoder_digest)[1],
        }
        return PinnedPicturePrompt.model_validate(prompt.model_dump() | pins)

    def require_fit(self, spec: Denoised, outline: Outline) -> None:
        for pinned in spec.picture_prompts:
            if (pinned.digest, spec.model_digest) not in self.whole:
                path, _ = self.folder.find("ip-adapter", pinned.model, digest=pinned.digest)
                kind = require_adapter(path, outline.description, name=pinned.model, model_name=outline.name)
                ip_adapter.require_whole(path, kind, cross=cross_attentions(outline.unet), name=pinned.model)
                self.whole.add((pinned.digest, spec.model_digest))

    def allocations(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        found: list[Allocation] = []
        for pinned in spec.picture_prompts:
            adapter, encoder = (pinned.digest, spec.model_digest), (pinned.encoder_digest, str(placement))
            found.append(self.allocation("ip-adapter", pinned.model, adapter, placement))
            found.append(self.allocation("image-encoder", pinned.encoder, encoder, placement))
        return found

    def allocation(self, kind: Kind, name: str, key: tuple[str, str], placement: Placement) -> Allocation:
        path, _ = self.folder.find(kind, name, digest=key[0])
        size = control_bytes(self.folder.files(kind, path), placement)
        return Allocation(key=key, kind=kind, name=name, size_bytes=size, drop=lambda: self.drop(key))

    def drop(self, key: tuple[str, str]) -> None:
        """Forget the network, and the pictures that it read; jobs that use them keep them."""
        with self.lock:
            self.loaded.pop(key, None)
            for read in [read for read in self.read if key[0] in read]:
                del self.read[read]

    def load(self, spec: Denoised, model: Model, pictures: Mapping[str, Image.Image]) -> ActivePicturePrompts:
        with self.lock:
            prompts = (self.prompt(pinned, model, pictures[pinned.image]) for pinned in spec.picture_prompts)
            return ActivePicturePrompts(tuple(prompts))

    def prompt(self, pinned: PinnedPicturePrompt, model: Model, image: Image.Image) -> ActivePicturePrompt:
        key = pinned.digest, pinned.encoder_digest, model.digest, pinned.image
        if key not in self.read:
            self.read[key] = self.read_picture(pinned, model, image)
        self.read.move_to_end(key)
        while len(self.read) > MAX_PICTURES:
            self.read.popitem(last=False)
        return ActivePicturePrompt(*self.read[key], pinned)

    @torch.inference_mode()
    def read_picture(self, pinned: PinnedPicturePrompt, model: Model, image: Image.Image) -> tuple[Tokens, Tokens]:
        """The tokens of the picture, and those of none, for rows of the negative prompt."""

        def load_ip() -> IpAdapter:
            path, _ = self.folder.find("ip-adapter", pinned.model, digest=pinned.digest)
            kind = require_adapter(path, model.description, name=pinned.model, model_name=model.name)
            cross = cross_attentions(model.unet)
            return load_adapter(path, kind, cross=cross, name=pinned.model, placement=model.placement)

        def load_image_encoder() -> PromptImageEncoder:
            folder, _ = self.folder.find("image-encoder", pinned.encoder, digest=pinned.encoder_digest)
            return load_encoder(folder, model.placement)

        adapter = self.load_once((pinned.digest, model.digest), load_ip)
        encoder = self.load_once((pinned.encoder_digest, str(model.placement)), load_image_encoder)
        states = encoder.read(image, patches=adapter.reads_patches)
        if states[0].shape[-1] != adapter.encoder_width:
            why = f"it reads {adapter.encoder_width} numbers, but the encoder gives {states[0].shape[-1]}: name another"
            raise IncompatibleControl(pinned.model, why, model=f"image encoder {pinned.encoder}")
        positive, negative = (Tokens(adapter, adapter.projection(some)[0]) for some in states)
        return positive, negative

    def load_once(self, key: tuple[str, str], load: Callable[[], T]) -> T:
        if key not in self.loaded:
            self.loaded[key] = load()
        found: T = self.loaded[key]
        return found
