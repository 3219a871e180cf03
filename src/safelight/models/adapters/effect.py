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
from torch import nn

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

RowKind = Literal["cond", "uncond", "uncond_image", "pag", "sag"]
"""cond: the prompt. uncond: the negative prompt. uncond_image: likewise, without the picture that is edited. pag: the
prompt, with self-attention perturbed. sag: uncond (cond without guidance) of a latent blurred where it attended."""

HintOf = Callable[[str, Fit], Image.Image]
"""The picture of that digest, at the size that the job draws now."""


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
    def hook(self, network: nn.Module) -> Hook: ...

    def row(self, moment: Moment) -> Any:
        """What the hook applies to this row; None, or something empty, where the effect does not act."""
        ...

    def require(self, spec: Denoised, networks: Sequence[Network]) -> None:
        """Raises UnsupportedOption where one of the networks has no place for the effect."""

    def at_size(self, hint_of: HintOf) -> "Active":
        """Prepared for the size that the job draws now: called before each pass."""
        del hint_of
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
