"""What the middle of a UNet looks at, per row: the places that the others attend to most (arXiv:2210.00939).

Two hooks in the first self-attention of the middle work the map out anew from its queries and keys, for those rows
alone: the network's own attention stays as fast as it is, and every row keeps its very bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from safelight.diffusion.guidance import degrade, guide_away
from safelight.diffusion.shapes import Latent
from safelight.errors import UnsupportedOption
from safelight.models.adapters.effect import FilelessEffect, Moment, Network, Prediction, WantedRow
from safelight.models.hooks.hook import NetworkInputs
from safelight.models.hooks.picture_prompts import by_head
from safelight.spec import Denoised, Draft


@dataclass(slots=True, eq=False)
class AttentionMask:
    """Asks for the attention of one row; the network call puts it in."""

    tiles: list[Tensor] = field(default_factory=list[Tensor])
    """(1, h, w) in latent pixels: 1 where more than the average is attended to. One, or one a tile."""


class SagEffect(FilelessEffect):
    """Guides away from a row of a second call, whose latent is blurred where the first call attended.

    That is the negative prompt's row, or without guidance the prompt's.
    """

    name = "sag"

    def used(self, draft: Draft | Denoised) -> bool:
        return bool(draft.sag_scale)

    def require(self, spec: Denoised, networks: Sequence[Network]) -> None:
        del spec
        for network in networks:
            middle_of(network.unet)

    def rows(self) -> tuple[WantedRow, ...]:
        return (WantedRow(second_call=True),)

    def row(self, moment: Moment) -> AttentionMask | None:
        """The mask of the row whose latent the second call blurs."""
        source = "uncond" if moment.uses_cfg else "cond"
        return AttentionMask() if moment.kind == source else None

    def hook(self, network: nn.Module) -> "SagHook":
        return SagHook(network)

    def second_latent(self, prediction: Prediction) -> Latent:
        [mask] = prediction.rows
        clean = prediction.clean(sharp(prediction))
        return degrade(prediction.latent, clean, prediction.join(mask.tiles), prediction.signal)

    def guide(self, guided: Latent, prediction: Prediction) -> Latent:
        [blurred] = prediction.own
        return guide_away(guided, sharp(prediction), blurred, prediction.spec.sag_scale)


def sharp(prediction: Prediction) -> Latent:
    """The prediction, (c, h, w), of the row whose latent the second call blurs."""
    return prediction.cond if prediction.uncond is None else prediction.uncond


class SagHook:
    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.hooked = False
        self.now: list[int] = []
        self.size = (0, 0)
        """Height and width of what the middle sees."""
        self.queries: Tensor | None = None
        self.keys: Tensor | None = None

    def __deepcopy__(self, _memo: object) -> "SagHook":
        return self

    @contextmanager
    def on(self, rows: Sequence[AttentionMask | None], inputs: NetworkInputs) -> Iterator[dict[str, Any]]:
        """Fill in the masks of the one call inside of the block."""
        wanted = [mask for mask in rows if mask is not None]
        middle = middle_of(self.network)
        self.hook(middle)
        self.now = [place for place, mask in enumerate(rows) if mask is not None]
        try:
            yield {}
            assert self.queries is not None
            assert self.keys is not None
            attention = middle.transformer_blocks[0].attn1
            attended = attended_to(self.queries, self.keys, heads=attention.heads, scale=attention.scale)
            masks = (attended > 1).float().unflatten(1, (1, *self.size))
            for mask, found in zip(wanted, interpolate(masks, size=inputs.latents.shape[-2:]), strict=True):
                mask.tiles.append(found)
        finally:
            self.now, self.queries, self.keys = [], None, None

    def hook(self, middle: Any) -> None:
        if self.hooked:
            return
        attention = middle.transformer_blocks[0].attn1
        middle.register_forward_pre_hook(self.measure)
        attention.to_q.register_forward_hook(self.keep_queries)
        attention.to_k.register_forward_hook(self.keep_keys)
        self.hooked = True

    def measure(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.now:
            height, width = inputs[0].shape[-2:]
            self.size = (height, width)

    def keep_queries(self, _layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember the wanted rows of the queries, (b, places, inner)."""
        if self.now:
            self.queries = output[self.now]

    def keep_keys(self, _layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember the wanted rows of the keys, (b, places, inner)."""
        if self.now:
            self.keys = output[self.now]


def attended_to(queries: Tensor, keys: Tensor, *, heads: int, scale: float) -> Tensor:
    """How much all places together look at each, on the average of the heads; (b, places), 1 on the average."""
    queries, keys = by_head(queries.float(), heads), by_head(keys.float(), heads)
    total = queries.new_zeros(len(queries), queries.shape[2])
    # One map at a time: those of all heads would be gigabytes where a picture is large.
    for row in range(len(queries)):
        for head in range(heads):
            total[row] += (queries[row, head] @ keys[row, head].T * scale).softmax(dim=1).sum(dim=0)
    return total / heads


def middle_of(network: Any) -> Any:
    """The transformer in the middle of a UNet.

    Raises:
        UnsupportedOption: there is none.
    """
    transformers = getattr(getattr(network, "mid_block", None), "attentions", None)
    if not transformers or not hasattr(transformers[0], "transformer_blocks"):
        raise UnsupportedOption("sag_scale", "this model has no self-attention in the middle of a UNet")
    return transformers[0]
