"""One shape for whatever steers a picture beside its prompt: LoRA, ControlNet, IP-Adapter, FreeU, PAG, SAG, plugins.

    Effect   the kind: what it needs of files and memory, and whether it fits a model; lives as long as the studio
    Active   the effect of one job, in memory: what it does in each row of each network call
    Hook     what is changed inside a network while it is called (`models/hooks/hook.py`)

A new kind is one file with these three, and one line in `EFFECTS` (`effects.py`). Methods with a body are optional.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image
from pydantic import BaseModel
from torch import Tensor, nn

from safelight.diffusion.shapes import Latent
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.families import Description
from safelight.models.hooks.adapters import Row as AdapterRow
from safelight.models.hooks.hook import Hook
from safelight.models.networks.components import Outline
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.spec import Denoised, Draft
from safelight.spec.fields import Fit

RowKind = Literal["cond", "uncond", "uncond_image"] | str
"""cond: the prompt. uncond: the negative prompt. uncond_image: likewise, without the picture that is edited. Further
rows are called by the effect that asked for them."""

AtSize = Callable[[str | Image.Image, Fit], Image.Image]
"""The picture, or the stored picture of that digest, at the size that the job draws now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRow:
    """One more row in every network call of a job, which an effect asks for."""

    prompt: int | None = None
    """Index of the effect's own prompt that the row is conditioned on; None: the job's prompt."""
    second_call: bool = False
    """The row needs what the first call predicts: it is of a second call, on the latent that `second_latent` makes, and
    conditioned as the row that guidance leads away from, or as the prompt's where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the network predicted for one job. Latents are (c, h, w)."""

    spec: Denoised
    latent: Latent
    """The latent that the prediction is about."""
    cond: Latent
    """For the prompt; where AND joins several, composed of them."""
    uncond: Latent | None
    """For the negative prompt; None without guidance."""
    own: Sequence[Latent]
    """For the rows that the effect wanted, as far as they are known."""
    rows: Sequence[Any]
    """What the effect's hook applied to rows of the first call."""
    signal: float
    """The clean latent's scale at this noise level."""
    clean: Callable[[Latent], Latent]
    """The estimate of the clean latent that a prediction leads to."""
    join: Callable[[Sequence[Tensor]], Tensor]
    """Of maps (k, h, w), one for each tile, the map of the canvas; of a single one, that one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One row of the coming network call."""

    spec: Denoised
    step: int
    """Steps of the trajectory that are finished, ..."""
    steps: int
    """... and all of them."""
    progress: float
    """Fraction of the pass that is finished; a refiner's steps belong to the pass that it ends."""
    kind: RowKind
    negative: bool
    """The row is conditioned on the negative prompt."""
    uses_cfg: bool
    """The job has a row with the negative prompt in this call."""


class Network(Protocol):
    """A model in memory, or its outline."""

    @property
    def unet(self) -> Any: ...


class Active(Protocol):
    """Methods with a body are optional: an effect acts through a hook (`hook`, `row`), or by rows of its own."""

    def hook(self, network: nn.Module) -> Hook:
        """Called where `row` has given something."""
        raise AssertionError(f"{type(self).__name__} gives its hook something to do, and has none")

    def row(self, moment: Moment) -> Any:
        """What the hook applies to this row; None, or something empty, where the effect does not act."""
        del moment

    def rows(self) -> tuple[WantedRow, ...]:
        """Further rows of each network call."""
        return ()

    def prompts(self) -> tuple[str, ...]:
        """Prompts of the effect's own, read as the job's prompt is."""
        return ()

    def second_latent(self, prediction: Prediction) -> Latent:
        """The latent of the row that it wants in a second call, (c, h, w)."""
        return prediction.latent

    def compose(self, cond: Latent, prediction: Prediction) -> Latent:
        """Change what the network predicted for the prompt, before guidance; (c, h, w)."""
        del prediction
        return cond

    def guide(self, guided: Latent, prediction: Prediction) -> Latent:
        """Change the prediction after guidance; (c, h, w)."""
        del prediction
        return guided

    def require(self, spec: Denoised, networks: Sequence[Network]) -> None:
        """Raises UnsupportedOption where one of the networks has no place for the effect."""

    def at_size(self, at_size: AtSize) -> "Active":
        """Prepared for the size that the job draws now: called before each pass."""
        del at_size
        return self

    def for_refiner(self) -> "Active | None":
        """The effect on the refiner that takes over; None for what was made for the base model."""
        return None

    def on_text(self) -> tuple[AdapterRow, ...]:
        """What is applied to each text encoder while it reads the prompts."""
        return ()

    def text_key(self) -> Hashable:
        """What `on_text` changes about encoded prompts: prompts of equal keys are encoded once."""
        return ()

    def cost(self) -> float:
        """Of a call's row, in rows through the UNet, beside the row itself."""
        return 0.0

    def stacked_bytes(self) -> Mapping[Hashable, int]:
        """Memory that a batch of jobs needs for their effects together, by what they share."""
        return {}


class Effect(Protocol):
    name: str
    """Of the field of drafts and specs; a plugin's entry in their field `effects`."""
    request: type[BaseModel] | None = None
    """The fields of a plugin's entry, whose values are `spec.effects[name]`."""

    def used(self, draft: Draft | Denoised) -> bool:
        return self.name in draft.effects

    def load(self, spec: Denoised, model: Model, pictures: Mapping[str, Image.Image]) -> Active:
        """Bring what the spec pins into memory.

        Raises:
            SafelightError: a file is missing, has changed, is damaged or does not fit the model.
        """
        ...

    def see(self, catalogue: Catalogue) -> None:
        """Find files there from now on."""

    def pin(self, draft: Draft, model: Description) -> Draft:
        """The draft with the digests of the files that its names stand for now; reads no weights."""
        del model
        return draft

    def texts(self, spec: Denoised) -> tuple[str, ...]:
        """Prompts of the effect's own, as `Active.prompts` will say."""
        del spec
        return ()

    def require(self, spec: Denoised, networks: Sequence[Network]) -> None:
        """Raises UnsupportedOption where one of the networks has no place for the effect."""

    def require_fit(self, spec: Denoised, outline: Outline) -> None:
        """Raises what loading would, as far as configurations and headers show it."""

    def allocations(self, spec: Denoised, placement: Placement) -> list[Allocation]:
        """The memory for weights that the spec's files take."""
        del spec, placement
        return []


class FilelessEffect(Effect, Active):
    """An effect that needs no files: one object serves every job, and the refiner that takes over."""

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        del catalogue

    def load(self, spec: Denoised, model: Model, pictures: Mapping[str, Image.Image]) -> Active:
        del spec, model, pictures
        return self

    def for_refiner(self) -> Active:
        return self
