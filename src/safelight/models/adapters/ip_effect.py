"""IP-Adapters as an effect: adapters, image encoders and face models are loaded once, and each picture is read once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from safelight.errors import IncompatibleControl, InvalidRequest
from safelight.models.adapters import ip_adapter
from safelight.models.adapters.effect import Active, Effect, Moment
from safelight.models.adapters.ip_adapter import PromptImageEncoder, load_adapter, load_encoder, tokens_of
from safelight.models.adapters.ip_file import (
    READS_FACES,
    READS_PICTURES,
    has_shortcut,
    require_adapter,
    require_inputs,
)
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder, Kind
from safelight.models.checkpoints.families import Description
from safelight.models.hooks.picture_prompts import IpAdapter, PicturePrompts, PromptedRow, Row, Tokens
from safelight.models.networks.components import Outline
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.models.networks.size_estimate import control_bytes
from safelight.models.vision.face import FaceModel, load_face_model, require_runtime
from safelight.spec import Denoised, Draft, PicturePromptRequest
from safelight.spec.effects import PinnedPicturePrompt

MAX_PICTURES = 64
"""The latest pictures are remembered as their adapters read them."""
FACE = "face"
"""In place of a placement: face models run on the CPU."""
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

    def stacked_bytes(self) -> Mapping[Hashable, int]:
        loras = (one.positive.adapter.lora for one in self.pictures)
        return {lora: lora.size_bytes for lora in loras if lora}


@dataclass(slots=True)
class IpAdapterEffect(Effect):
    catalogue: Catalogue
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    """By the digests of files and model; an image encoder serves all models of a placement, a face model all models."""
    read: OrderedDict[tuple[Hashable, ...], tuple[Tokens, Tokens]] = field(
        default_factory=OrderedDict[tuple[Hashable, ...], tuple[Tokens, Tokens]]
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
        """Each picture prompt with the digests of its adapter and of what reads its picture."""
        prompts = (self.pin_one(prompt, model, model_name=draft.model) for prompt in draft.picture_prompts)
        return draft.model_copy(update={"picture_prompts": tuple(prompts)})

    def pin_one(self, prompt: PicturePromptRequest, model: Description, *, model_name: str) -> PinnedPicturePrompt:
        """
        Raises:
            UnknownControl, InvalidRequest: a file is not here, or another one by now.
            IncompatibleControl: it is for another family.
            UnsafeFile, CorruptModel, UnsupportedOption: it is no IP-Adapter, or reads something else than is given.
            MissingExtra: face models cannot be run here.
        """
        path = self.folder.path("ip-adapter", prompt.model)
        kind = require_adapter(path, model, name=prompt.model, model_name=model_name)
        require_inputs(prompt, kind)
        pins: dict[str, Any] = {"digest": self.folder.find("ip-adapter", prompt.model, digest=prompt.digest)[1]}
        if kind in READS_PICTURES:
            pins["encoder"] = self.folder.encoder_for(path, prompt.encoder)
            found = self.folder.find("image-encoder", pins["encoder"], digest=prompt.encoder_digest)
            pins["encoder_digest"] = found[1]
        if kind in READS_FACES and not prompt.faces:
            pins["face_model"] = self.folder.face_model_for(prompt.face_model)
            require_runtime()
            found = self.folder.find("face-model", pins["face_model"], digest=prompt.face_model_digest)
            pins["face_model_digest"] = found[1]
        if kind == "face-plus":
            pins["shortcut"] = has_shortcut(prompt, path)
        return PinnedPicturePrompt.model_validate(prompt.model_dump() | pins)

    def require_fit(self, spec: Denoised, outline: Outline) -> None:
        for pinned in spec.picture_prompts:
            if (pinned.digest, spec.model_digest) not in self.whole:
                path, _ = self.folder.find("ip-adapter", pinned.model, digest=pinned.digest)
                kind = require_adapter(path, outline.description, name=pinned.model, model_name=outline.name)
                ip_adapter.require_whole(path, kind, network=outline.unet, name=pinned.model)
                self.whole.add((pinned.digest, spec.model_digest))

    def allocations(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        found: list[Allocation] = []
        for pinned in spec.picture_prompts:
            found.append(self.allocation("ip-adapter", pinned.model, (pinned.digest, spec.model_digest), placement))
            if pinned.encoder and pinned.encoder_digest:
                encoder = pinned.encoder_digest, str(placement)
                found.append(self.allocation("image-encoder", pinned.encoder, encoder, placement))
            if pinned.face_model and pinned.face_model_digest:
                face_model = pinned.face_model_digest, FACE
                found.append(self.allocation("face-model", pinned.face_model, face_model, placement))
        return found

    def allocation(self, kind: Kind, name: str, key: tuple[str, str], placement: Placement) -> Allocation:
        path, _ = self.folder.find(kind, name, digest=key[0])
        size = path.stat().st_size if kind == "face-model" else control_bytes(self.folder.files(kind, path), placement)
        return Allocation(key=key, kind=kind, name=name, size_bytes=size, drop=lambda: self.drop(key))

    def drop(self, key: tuple[str, str]) -> None:
        """Forget the network, and the pictures that it read; jobs that use them keep them."""
        with self.lock:
            self.loaded.pop(key, None)
            for read in [read for read in self.read if key[0] in read]:
                del self.read[read]

    def load(self, spec: Denoised, model: Model, pictures: Mapping[str, Image.Image]) -> ActivePicturePrompts:
        with self.lock:
            prompts = (self.prompt(pinned, model, pictures) for pinned in spec.picture_prompts)
            return ActivePicturePrompts(tuple(prompts))

    def prompt(
        self, pinned: PinnedPicturePrompt, model: Model, pictures: Mapping[str, Image.Image]
    ) -> ActivePicturePrompt:
        readers = pinned.digest, pinned.encoder_digest, pinned.face_model_digest, model.digest
        key = *readers, pinned.image, pinned.faces, pinned.shortcut
        if key not in self.read:
            self.read[key] = self.read_prompt(pinned, model, pictures)
        self.read.move_to_end(key)
        while len(self.read) > MAX_PICTURES:
            self.read.popitem(last=False)
        return ActivePicturePrompt(*self.read[key], pinned)

    @torch.inference_mode()
    def read_prompt(
        self, pinned: PinnedPicturePrompt, model: Model, pictures: Mapping[str, Image.Image]
    ) -> tuple[Tokens, Tokens]:
        """The tokens of the picture or the faces, and those of none, for rows of the negative prompt."""
        path, _ = self.folder.find("ip-adapter", pinned.model, digest=pinned.digest)
        kind = require_adapter(path, model.description, name=pinned.model, model_name=model.name)
        require_inputs(pinned, kind)

        def load_ip() -> IpAdapter:
            return load_adapter(path, kind, network=model.unet, name=pinned.model, placement=model.placement)

        adapter = self.load_once((pinned.digest, model.digest), load_ip)
        states, faces = (None, None), (None, None)
        if kind in READS_PICTURES:
            states = self.states_of(pinned, adapter, pictures, model.placement)
        if kind in READS_FACES:
            given = self.faces_of(pinned, pictures).to(model.placement.device, model.placement.dtype)
            faces = given, torch.zeros_like(given)
        positive, negative = (
            Tokens(adapter, tokens_of(adapter, *read, shortcut=bool(pinned.shortcut)))
            for read in zip(states, faces, strict=True)
        )
        return positive, negative

    def states_of(
        self, pinned: PinnedPicturePrompt, adapter: IpAdapter, pictures: Mapping[str, Image.Image], placement: Placement
    ) -> tuple[Tensor, Tensor]:
        """What the image encoder says of the picture, and of none: (1, width) each, or (1, patches, width)."""
        image, name, digest = pinned.image, pinned.encoder, pinned.encoder_digest
        if image is None or name is None or digest is None:
            raise unpinned(pinned, "image encoder")

        def load_image_encoder() -> PromptImageEncoder:
            return load_encoder(self.folder.find("image-encoder", name, digest=digest)[0], placement)

        encoder = self.load_once((digest, str(placement)), load_image_encoder)
        states = encoder.read(pictures[image], patches=adapter.reads_patches)
        if states[0].shape[-1] != adapter.encoder_width:
            why = f"it reads {adapter.encoder_width} numbers, but the encoder gives {states[0].shape[-1]}: name another"
            raise IncompatibleControl(pinned.model, why, model=f"image encoder {name}")
        return states

    def faces_of(self, pinned: PinnedPicturePrompt, pictures: Mapping[str, Image.Image]) -> Tensor:
        """The embeddings, (n, 512) in float32 on the CPU: those that are given, or the face model's."""
        if pinned.faces:
            return torch.tensor(pinned.faces)
        image, name, digest = pinned.image, pinned.face_model, pinned.face_model_digest
        if image is None or name is None or digest is None:
            raise unpinned(pinned, "face model")

        def load_model() -> FaceModel:
            return load_face_model(self.folder.find("face-model", name, digest=digest)[0])

        return self.load_once((digest, FACE), load_model).embed(pictures[image])

    def load_once(self, key: tuple[str, str], load: Callable[[], T]) -> T:
        if key not in self.loaded:
            self.loaded[key] = load()
        found: T = self.loaded[key]
        return found


def unpinned(pinned: PinnedPicturePrompt, what: str) -> InvalidRequest:
    return InvalidRequest(f"the spec names no {what} that reads the picture of {pinned.model}")
