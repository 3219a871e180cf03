"""What a run says while it goes on; the last word is Finished."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The pictures were looked at and made ready."""

    num_pictures: int
    num_held: int
    dataset_digest: str
    buckets: dict[str, int]
    """Pictures by size, as in `512x768`."""
    notes: list[str] = field(default_factory=list[str])
    """What was odd about the data."""


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
    """On the pictures kept aside, with the same draws each time."""
    best: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that the run can be taken up from."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFinished:
    name: str
    kind: str
    reference: str
    """The version that it became: `brand@2`. The bare name stands for it from now on."""
    path: Path
    """Where the registry keeps it."""
    step: int
    stopped_early: bool
    lineage: dict[str, Any]


TrainingEvent = Preparing | Prepared | Updated | Validated | Sampled | Saved | TrainingFinished
