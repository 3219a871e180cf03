"""Perturbed attention, per row: some rows of a call look at nothing but themselves (arXiv:2403.17377).

In those layers of the UNet, in its middle mostly, where the structure of a picture is decided, a perturbed row's
self-attention gives each place its own value back, as if every place attended to itself alone. What the network then
draws lacks structure, and guidance leads away from it (`diffusion/guidance.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from safelight.diffusion.guidance import guide_away
from safelight.diffusion.shapes import Latent
from safelight.errors import UnsupportedOption, nearest
from safelight.models.adapters.effect import FilelessEffect, Moment, Network, Prediction, WantedRow
from safelight.models.hooks.hook import NetworkInputs
from safelight.prompts.prompt_schedule import parts_of
from safelight.spec import Denoised, Draft

Row = tuple[str, ...]
"""Names of layers; none: the row is left alone."""
SIDES = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


class PagEffect(FilelessEffect):
    """Guides away from one more row: the prompt's, perturbed."""

    name = "pag"

    def used(self, draft: Draft | Denoised) -> bool:
        return bool(draft.pag_scale)

    def require(self, spec: Denoised, networks: Sequence[Network]) -> None:
        for network in networks:
            PagHook(network.unet).paths_of(spec.pag_layers)
        if len(parts_of(spec.prompt)) > 1:
            raise UnsupportedOption("pag_scale", "perturbed attention cannot be combined with AND")

    def rows(self) -> tuple[WantedRow, ...]:
        return (WantedRow(),)

    def row(self, moment: Moment) -> Row:
        return moment.spec.pag_layers if moment.kind == self.name else ()

    def hook(self, network: nn.Module) -> "PagHook":
        return PagHook(network)

    def guide(self, guided: Latent, prediction: Prediction) -> Latent:
        [perturbed] = prediction.own
        return guide_away(guided, prediction.cond, perturbed, prediction.spec.pag_scale)


class PagHook:
    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.hooked = set[str]()
        self.values: Tensor | None = None
        self.now: dict[str, list[int]] = {}
        """By the path of a self-attention, the rows that are perturbed in it."""

    def __deepcopy__(self, _memo: object) -> "PagHook":
        return self

    @contextmanager
    def on(self, rows: Sequence[Row | None], inputs: NetworkInputs) -> Iterator[dict[str, Any]]:
        """`rows` has the layers in which each row is perturbed."""
        del inputs
        now: dict[str, list[int]] = {}
        for place, names in enumerate(rows):
            for path in self.paths_of(names) if names else ():
                now.setdefault(path, []).append(place)
        for path in now.keys() - self.hooked:
            self.hook(path)
        self.now = now
        try:
            yield {}
        finally:
            self.now, self.values = {}, None

    def paths_of(self, names: Row) -> list[str]:
        """Of the self-attentions in the named layers: `down`, `mid` and `up`, or part of a path as diffusers has it.

        Raises:
            UnsupportedOption: the network is no UNet, or has none there.
        """
        if not self.paths:
            raise UnsupportedOption("pag_scale", "this model has no UNet with self-attention")
        chosen: dict[str, None] = {}
        for name in names:
            found = [path for path in self.paths if path.startswith(f"{SIDES.get(name, name)}.")]
            if not found:
                known = layers_of(self.paths)
                close = nearest(name, known)
                why = f"no self-attention in {name!r}{close}; known: {', '.join(known)}"
                raise UnsupportedOption("pag_layers", why)
            chosen |= dict.fromkeys(found)
        return list(chosen)

    @cached_property
    def paths(self) -> list[str]:
        """Of all self-attentions of a UNet; none where the network is something else."""
        sides = tuple(f"{side}." for side in SIDES.values())
        return [path for path, _ in self.network.named_modules() if path.endswith(".attn1") and path.startswith(sides)]

    def hook(self, path: str) -> None:
        attention: Any = self.network.get_submodule(path)
        attention.to_v.register_forward_hook(partial(self.keep, path))
        attention.to_out[0].register_forward_pre_hook(partial(self.put, path))
        self.hooked.add(path)

    def keep(self, path: str, _layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember the values, (b, places, inner)."""
        if path in self.now:
            self.values = output

    def put(self, path: str, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """Replace what perturbed rows attended to, (b, places, inner), by each place's own value."""
        if path in self.now:
            assert self.values is not None
            index = torch.tensor(self.now[path], device=inputs[0].device)
            inputs[0].index_copy_(0, index, self.values.index_select(0, index).to(inputs[0]))


def layers_of(paths: Sequence[str]) -> list[str]:
    """Names that stand for some of these: sides of the UNet, then their blocks, then the parts of those."""
    sides = [name for name, side in SIDES.items() if any(path.startswith(f"{side}.") for path in paths)]
    parts = [path.split(".") for path in paths if not path.startswith(f"{SIDES['mid']}.")]
    return list(
        dict.fromkeys([*sides, *(".".join(part[:2]) for part in parts), *(".".join(part[:4]) for part in parts)])
    )
