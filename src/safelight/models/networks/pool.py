"""The checkpoints in memory, by digest; each is loaded once, at its first use, and stays until it is evicted
(`memory.py`)."""

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from safelight.errors import InvalidRequest, UnknownModel
from safelight.models.checkpoints.catalogue import MINI, Catalogue, digest_mismatch
from safelight.models.checkpoints.digest import digest_model, known_digest
from safelight.models.checkpoints.families import Description, describe
from safelight.models.networks.components import Outline
from safelight.models.networks.load import Model, load_model
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.models.networks.size_estimate import ModelSize, model_size

MAX_OUTLINES = 4


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint on disk, with its digest."""

    path: Path
    digest: str
    description: Description
    size: ModelSize


@dataclass(slots=True)
class ModelPool:
    catalogue: Catalogue
    placement: Placement
    found: dict[str, Found] = field(default_factory=dict[str, Found])
    """By path, or by the name of a checkpoint that is not listed: a path or a hub id."""
    loaded: dict[str, Model] = field(default_factory=dict[str, Model])
    locks: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    """By name or digest: a download takes minutes, and other models should not wait for it."""
    outlines: dict[str, Outline] = field(default_factory=dict[str, Outline])
    """By digest."""
    outline_lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, name: str) -> Found:
        with self.locks[name]:
            # While the process runs, a name may be moved to other files; the old files stay unchanged.
            listed = self.catalogue.listed(name)
            key = name if listed is None else str(listed)
            if key not in self.found:
                path = listed or self.catalogue.find(name, half=self.placement.dtype != torch.float32)
                self.found[key] = self.inspect(path)
            return self.found[key]

    def outline(self, name: str, found: Found) -> Outline:
        """Return the checkpoint's networks without weights; the most recently used are cached."""
        with self.outline_lock:
            outline = self.outlines.pop(found.digest, None) or Outline(name, found.description)
            self.outlines[found.digest] = outline
            while len(self.outlines) > MAX_OUTLINES:
                del self.outlines[next(iter(self.outlines))]
            return outline

    def known_digest(self, name: str) -> str | None:
        """Return the digest; None for a model of a linked folder that was never used: hashing them all takes hours."""
        listed = self.catalogue.listed(name)
        if listed is None or listed == MINI or listed.is_relative_to(self.catalogue.home):
            return self.find(name).digest
        return known_digest(describe(listed), cache=self.catalogue.sums)

    def inspect(self, path: Path) -> Found:
        description = describe(path)
        digest = digest_model(description, cache=self.catalogue.sums)
        return Found(path, digest, description, model_size(description, self.placement))

    def get(self, name: str, digest: str) -> Model:
        """Return the model, loaded if it is not in memory.

        Raises:
            InvalidRequest: the name refers to other weights than the spec's, and no version has that digest.
        """
        with self.locks[digest]:
            if digest not in self.loaded:
                found = self.pinned(name, digest)
                self.loaded[digest] = load_model(found.description, name=name, digest=digest, placement=self.placement)
            return self.loaded[digest]

    def allocation(self, name: str, digest: str, *, extra: Callable[[ModelSize], int] = lambda _size: 0) -> Allocation:
        """Return the memory its weights need; `extra` adds the bytes of copies made for speed."""
        found = self.pinned(name, digest)
        return Allocation(
            key=found.digest,
            kind="model",
            name=name,
            size_bytes=found.size.total + extra(found.size),
            drop=lambda: self.drop(found.digest),
        )

    def drop(self, digest: str) -> None:
        """Forget its networks; other references to them stay valid."""
        self.loaded.pop(digest, None)

    def pinned(self, name: str, digest: str) -> Found:
        """Return the checkpoint with this digest: the one the name refers to now, or a version in the registry."""
        problem: InvalidRequest
        try:
            if (found := self.find(name)).digest == digest:
                return found
            problem = digest_mismatch(name, "checkpoint", now=found.digest, then=digest)
        except UnknownModel as error:
            problem = error
        if path := self.catalogue.version(digest, "checkpoint"):
            return self.inspect(path)
        raise problem
