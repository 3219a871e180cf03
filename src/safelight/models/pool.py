"""The checkpoints that are in memory, by digest; each is loaded once, whoever asks first, and kept until its room is
needed (`memory.py`)."""

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from safelight.errors import InvalidRequest
from safelight.models.catalogue import Catalogue
from safelight.models.digest import digest_model
from safelight.models.families import Description, describe
from safelight.models.load import Model, load_model
from safelight.models.memory import Need
from safelight.models.placement import Placement
from safelight.models.room import ModelSize, model_size


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint on disk, pinned by its digest."""

    path: Path
    digest: str
    description: Description
    size: ModelSize


@dataclass(slots=True)
class ModelPool:
    catalogue: Catalogue
    placement: Placement
    sums: Path
    """Where the files' checksums are remembered."""
    found: dict[str, Found] = field(default_factory=dict[str, Found])
    loaded: dict[str, Model] = field(default_factory=dict[str, Model])
    locks: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    """By name: a download takes minutes, and other models should not wait for it."""

    def find(self, name: str) -> Found:
        with self.locks[name]:
            if name not in self.found:
                path = self.catalogue.find(name, half=self.placement.dtype != torch.float32)
                description = describe(path)
                digest = digest_model(description, cache=self.sums)
                self.found[name] = Found(path, digest, description, model_size(description, self.placement))
            return self.found[name]

    def get(self, name: str, digest: str) -> Model:
        """The model in memory.

        Raises:
            InvalidRequest: the name now stands for other weights than the spec was made with.
        """
        found = self.find(name)
        if found.digest != digest:
            raise InvalidRequest(
                f"model {name!r} is {found.digest[:10]} here and {digest[:10]} in the spec: the picture would differ"
            )
        with self.locks[digest]:
            if digest not in self.loaded:
                self.loaded[digest] = load_model(found.description, name=name, digest=digest, placement=self.placement)
            return self.loaded[digest]

    def need(self, name: str, *, extra: Callable[[ModelSize], int] = lambda _size: 0) -> Need:
        """What it takes of the memory for weights; `extra` is what is made of them for speed."""
        found = self.find(name)
        return Need(
            key=found.digest,
            kind="model",
            name=name,
            size_bytes=found.size.whole + extra(found.size),
            drop=lambda: self.drop(found.digest),
        )

    def drop(self, digest: str) -> None:
        """Forget its networks; who still has them keeps them."""
        self.loaded.pop(digest, None)
