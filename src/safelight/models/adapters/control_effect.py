"""ControlNets and T2I-Adapters as an effect: each network is loaded once for a model, and its hint read once a pass."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image
from torch import nn

from safelight.models.adapters.control import (
    ControlHook,
    ControlInput,
    ControlNet,
    Features,
    Net,
    Row,
    load_control,
    require_whole,
)
from safelight.models.adapters.control_file import describe_control, hint_kind
from safelight.models.adapters.effect import Active, AtSize, Effect, Moment
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.models.checkpoints.families import Description
from safelight.models.networks.components import Outline
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.models.networks.size_estimate import control_bytes
from safelight.spec import ControlRequest, Denoised, Draft
from safelight.spec.effects import PinnedControl

COST = 0.4
"""Of a row through a ControlNet, where one through the UNet is 1; counted in operations, 0.35 for Stable Diffusion 1
and 0.45 for SDXL."""


@dataclass(frozen=True, slots=True)
class ActiveControl:
    """A network in memory, and how the spec uses it."""

    net: Net
    pinned: PinnedControl

    def on(self, features: Features, moment: Moment) -> Row:
        cond_only = self.pinned.mode == "control" or getattr(self.net, "pools", False)
        if not self.pinned.holds(moment.step, moment.steps) or not self.pinned.weight:
            return ()
        if moment.negative and cond_only:
            return ()
        soft = self.pinned.mode != "balanced"
        return (ControlInput(self.net, features, self.pinned.weight, soft=soft, kind=self.pinned.hint_kind),)


@dataclass(frozen=True, slots=True)
class ActiveControls(Active):
    """The controls of one job."""

    controls: tuple[ActiveControl, ...]
    features: tuple[Features, ...] = ()
    """What each makes of its hint at the size that is drawn now."""

    def hook(self, network: nn.Module) -> ControlHook:
        return ControlHook(network)

    def at_size(self, at_size: AtSize) -> "ActiveControls":
        features = (one.net.read(at_size(one.pinned.hint, one.pinned.fit)) for one in self.controls)
        return ActiveControls(self.controls, tuple(features))

    def row(self, moment: Moment) -> Row:
        pairs = zip(self.controls, self.features, strict=True)
        return tuple(control for one, features in pairs for control in one.on(features, moment))

    def cost(self) -> float:
        return COST * sum(isinstance(one.net, ControlNet) for one in self.controls)


@dataclass(slots=True)
class ControlEffect(Effect):
    catalogue: Catalogue
    loaded: dict[tuple[str, str], Net] = field(default_factory=dict[tuple[str, str], Net])
    """By the digests of network and model."""
    whole: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Digests of networks and models that are known to go together."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    name: str = "controls"

    @property
    def folder(self) -> ControlFolder:
        return ControlFolder(self.catalogue)

    def used(self, draft: Draft | Denoised) -> bool:
        return bool(draft.controls)

    def see(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def pin(self, draft: Draft, model: Description) -> Draft:
        """Each control with the digest of its network; its hint is made before (`resolve/hints.py`)."""
        controls = (self.pin_one(control, model, model_name=draft.model) for control in draft.controls)
        return draft.model_copy(update={"controls": tuple(controls)})

    def pin_one(self, control: ControlRequest, model: Description, *, model_name: str) -> PinnedControl:
        """
        Raises:
            UnknownControl, InvalidRequest: the network is not here, or another one by now; its hint's kind is unknown.
            IncompatibleControl: it is for another family.
            UnsafeFile, CorruptModel, UnsupportedOption: it is no ControlNet or T2I-Adapter.
        """
        path = self.folder.path("control", control.model)
        file = describe_control(path, model, name=control.model, model_name=model_name)
        digest = self.folder.find("control", control.model, digest=control.digest)[1]
        pins = {"digest": digest, "hint_kind": hint_kind(control, file)}
        return PinnedControl.model_validate(control.model_dump() | pins)

    def require_fit(self, spec: Denoised, outline: Outline) -> None:
        for pinned in spec.controls:
            if (pinned.digest, spec.model_digest) not in self.whole:
                path, _ = self.folder.find("control", pinned.model, digest=pinned.digest)
                require_whole(describe_control(path, outline.description, name=pinned.model, model_name=outline.name))
                self.whole.add((pinned.digest, spec.model_digest))

    def allocations(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        return [self.allocation(pinned, spec.model_digest, placement) for pinned in spec.controls]

    def allocation(self, pinned: PinnedControl, model_digest: str, placement: Placement) -> Allocation:
        key = pinned.digest, model_digest
        path, _ = self.folder.find("control", pinned.model, digest=pinned.digest)
        size = control_bytes(self.folder.files("control", path), placement)
        return Allocation(key=key, kind="control", name=pinned.model, size_bytes=size, drop=lambda: self.drop(key))

    def drop(self, key: tuple[str, str]) -> None:
        """Forget the network; jobs that use it keep it."""
        with self.lock:
            self.loaded.pop(key, None)

    def load(self, spec: Denoised, model: Model, pictures: Mapping[str, Image.Image]) -> ActiveControls:
        del pictures
        with self.lock:
            return ActiveControls(tuple(ActiveControl(self.net(pinned, model), pinned) for pinned in spec.controls))

    def net(self, pinned: PinnedControl, model: Model) -> Net:
        key = pinned.digest, model.digest
        if key not in self.loaded:
            path, _ = self.folder.find("control", pinned.model, digest=pinned.digest)
            file = describe_control(path, model.description, name=pinned.model, model_name=model.name)
            self.loaded[key] = load_control(file, model.placement, model.unet)
        return self.loaded[key]
