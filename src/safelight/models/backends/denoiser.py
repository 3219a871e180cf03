"""The seam between the engine and whatever computes the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from safelight.diffusion.shapes import Latents, PerRow
from safelight.models.hooks.hook import EffectRows
from safelight.models.networks.encode import Conditioning

TENSORS = ("context", "mask", "pooled", "time_ids", "guidance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the network is told besides latents and timesteps; b rows."""

    context: Tensor
    """(b, tokens, dim) prompt states, zero beyond a shorter prompt."""
    mask: Tensor | None
    """(b, tokens) True where a prompt has tokens; None when all are equally long."""
    pooled: Tensor | None
    """(b, dim) the summary of the prompt, for networks that are told one."""
    time_ids: Tensor | None
    """(b, 6) SDXL's original size, crop and target size, each height before width."""
    guidance: Tensor | None
    """(b,) the scale, for networks that take guidance as an input instead of a second row."""
    effects: Mapping[str, EffectRows] = field(default_factory=dict[str, EffectRows])
    """Whatever steers rows beside their prompts. A back end that cannot apply an effect must refuse."""

    def take(self, index: Sequence[int]) -> "Conditions":
        """Those rows, in that order; a row may come several times."""
        per_row = {name: value[list(index)] for name in TENSORS if (value := getattr(self, name)) is not None}
        return replace(self, **per_row, effects={name: rows.take(index) for name, rows in self.effects.items()})

    def without_padding(self) -> "Conditions":
        """Rows whose prompts are equally long, without what pads them for longer neighbours in the batch."""
        if self.mask is None:
            return self
        return replace(self, context=self.context[:, : int(self.mask[0].sum())], mask=None)


class Denoiser(Protocol):
    def __call__(self, latents: Latents, timesteps: PerRow, conditions: Conditions) -> Latents: ...


def stack(rows: Sequence[Conditioning]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Prompts as one tensor (b, tokens, dim), a mask (b, tokens) where lengths differ, and pooled states (b, dim)."""
    pooled = torch.stack([row.pooled for row in rows if row.pooled is not None]) if rows[0].pooled is not None else None
    lengths = [len(row.context) for row in rows]
    if len(set(lengths)) == 1:
        return torch.stack([row.context for row in rows]), None, pooled
    context = torch.nn.utils.rnn.pad_sequence([row.context for row in rows], batch_first=True)
    positions = torch.arange(max(lengths), device=context.device)
    return context, positions < torch.tensor(lengths, device=context.device)[:, None], pooled
