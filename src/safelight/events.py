"""Facts about a job, in the order they happen; what the engine and the path report, and all they report.

    Queued Started Stepped* Previewed* Decoded (Stored) | Failed | Cancelled
    Queued Started Stepped* Learnt | Failed | Cancelled                       where something is trained

Frozen and free of torch, so that a server, a log or a page can listen without loading a network.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from safelight.errors import SafelightError


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    job_id: str
    position: int
    """Jobs before it when it arrived."""


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
    """The denoised estimate in rough colours, at latent resolution."""

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
    """From submission to the stored file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The end of a training job: a LoRA, an embedding or a model has this name from now on."""

    job_id: str
    name: str
    reference: str
    """The version that it became: `brand@2`."""
    kind: str
    digest: str
    """Of its contents, as specs pin them."""
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
