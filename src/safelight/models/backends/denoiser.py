"""The seam between the engine and whatever computes the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from safelight.diffusion.shapes import Latents, PerRow
from safelight.models.adapters import control
from safelight.models.hooks import picture_prompts
from safelight.models.hooks.adapters import Row
from safelight.models.hooks.attention_mask import AttentionMask
from safelight.models.networks.encode import Conditioning
from safelight.spec import FreeU


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
    adapters: Sequence[Row] | None = None
    """LoRAs, for each row its own; None where no row has any. A back end that cannot apply them must refuse."""
    controls: Sequence[control.Row] | None = None
    """ControlNets and T2I-Adapters, likewise."""
    pictures: Sequence[picture_prompts.Row] | None = None
    """What rows look at beside their words, likewise."""
    freeu: Sequence[FreeU | None] | None = None
    """Factors of FreeU, likewise."""
    perturbed: Sequence[tuple[str, ...]] | None = None
    """Layers whose self-attention is switched off, likewise."""
    attention_mask: AttentionMask | None = None
    """To be filled in, for the rows it asks about. A back end that cannot say it must refuse."""

    def rows(self, chosen: Sequence[int]) -> "Conditions":
        """Those of some rows, whose prompts are equally long, without what pads them for longer neighbours."""
        context = self.context[list(chosen)]
        if self.mask is not None:
            context = context[:, : int(self.mask[chosen[0]].sum())]
        per_row = {
            name: None if (value := getattr(self, name)) is None else value[list(chosen)]
            for name in ("pooled", "time_ids", "guidance")
        }
        adapters = None if self.adapters is None else [self.adapters[i] for i in chosen]
        return Conditions(context=context, mask=None, adapters=adapters, **per_row)


class Denoiser(Protocol):
    def __call__(self, latents: Latents, timesteps: PerRow, conditions: Conditions) -> Latents: ...


def stack(rows: Sequence[Conditioning]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Prompts of any lengths as one tensor, a mask where lengths differ, and the pooled states."""
    pooled = torch.stack([row.pooled for row in rows if row.pooled is not None]) if rows[0].pooled is not None else None
    lengths = [len(row.context) for row in rows]
    if len(set(lengths)) == 1:
        return torch.stack([row.context for row in rows]), None, pooled
    context = torch.nn.utils.rnn.pad_sequence([row.context for row in rows], batch_first=True)
    positions = torch.arange(max(lengths), device=context.device)
    return context, positions < torch.tensor(lengths, device=context.device)[:, None], pooled
