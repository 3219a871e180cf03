"""Events of a training run; the last is TrainingFinished."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The pictures are checked and encoded."""

    num_pictures: int
    num_held: int
    dataset_digest: str
    buckets: dict[str, int]
    """Pictures by size, as in `512x768`."""
    notes: list[str] = field(default_factory=list[str])
    """Problems found in the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """Work before the first step."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """One update of the weights."""

    step: int
    total_steps: int
    loss: float
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    step: int
    loss: float
    """On the held-out pictures, with the same noise each time."""
    best: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that the run can resume from."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFinished:
    name: str
    kind: str
    reference: str
    """The new version, `brand@2`; the bare name now stands for it."""
    path: Path
    """Its file or folder in the registry."""
    step: int
    stopped_early: bool
    lineage: dict[str, Any]


TrainingEvent = Preparing | Prepared | Updated | Validated | Sampled | Saved | TrainingFinished
EVENT_NAMES: dict[type[TrainingEvent], str] = {
    Preparing: "preparing",
    Prepared: "prepared",
    Updated: "trained",
    Validated: "validated",
    Sampled: "sampled",
    Saved: "saved",
    TrainingFinished: "finished",
}
"""The names in the JSON lines of `safelight train --json`, which clients and the server's job queue read."""
