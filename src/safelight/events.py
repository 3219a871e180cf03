"""Events of a job, in order: everything that the engine and the pipeline report.

    Queued Started Stepped* Previewed* Decoded (Stored) | Failed | Cancelled
    Queued Started Stepped* Trained | Failed | Cancelled                      for a training job

Frozen and free of torch, so that a server, a log or a page can use them without importing torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from safelight.errors import SafelightError


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    job_id: str
    position: int
    """Number of jobs before it when it was queued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    job_id: str
    total_steps: int
    waited_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    job_id: str
    step: int
    """Steps finished, counted from 1."""
    total_steps: int
    batch_rows: int
    """Network rows in the call that made this step, neighbours included."""
    compute_s: float = 0.0
    """Network seconds this job accounts for so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Previewed:
    """An approximate RGB preview of the denoised estimate, at latent resolution."""

    job_id: str
    step: int
    image: "Image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    job_id: str
    image: "Image"
    compute_s: float
    """Network seconds this job accounts for: its share of every call it took part in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    job_id: str
    asset_id: str
    path: str
    seconds: float
    """Seconds from submission to the stored file."""
    pixels: str = ""
    """sha256 of the pixels as they were drawn, before marks and compression."""
    marks: Mapping[str, str] = field(default_factory=dict[str, str])
    """What became of each mark, by layer: `{"signature": "signed", "timestamp": "missed"}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The end of a training job: its LoRA, embedding or model is registered under `name`."""

    job_id: str
    name: str
    reference: str
    """The registered version: `brand@2`."""
    kind: str
    digest: str
    """Digest of its contents, as pinned in specs."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    job_id: str
    error: "SafelightError"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    job_id: str
    step: int


Event = Queued | Started | Stepped | Previewed | Decoded | Stored | Trained | Failed | Cancelled
