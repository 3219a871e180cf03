"""Rows with unlike sets, on one layer at a time: what is added is what merged weights would have added."""

import pytest
import torch
from torch import nn

from safelight.models.hooks.adapters import Adapter, Adapters, Applied, Row
from safelight.models.hooks.lora_terms import LowRank, run

LAYERS = {
    "linear": lambda: nn.Linear(12, 20),
    "conv 1x1": lambda: nn.Conv2d(12, 20, 1),
    "conv 3x3": lambda: nn.Conv2d(12, 20, 3, padding=1),
    "conv 1x1 of every other pixel": lambda: nn.Conv2d(12, 20, 1, stride=2),
}
INPUTS = {
    "vectors": lambda: torch.randn(4, 12),
    "tokens": lambda: torch.randn(4, 7, 12),
    "channels first": lambda: torch.randn(4, 12, 6, 5),
    "channels last": lambda: torch.randn(4, 12, 6, 5).to(memory_format=torch.channels_last),
}
# By name, the LoRAs of each of four rows.
WORN = {
    "one set": "aaaa",
    "two in turn": "abab",
    "a row without": "a-b-",
    "one row": "--b-",
    "two at once": ("ab", "b", "", "a"),
}


def lora(layer: nn.Linear | nn.Conv2d, rank: int) -> Adapter:
    term = LowRank(torch.randn(rank, *layer.weight.shape[1:]), torch.randn(len(layer.weight), rank))
    return Adapter({"0": (term,)})


@pytest.mark.parametrize("active", WORN.values(), ids=WORN)
@pytest.mark.parametrize(
    ("kind", "given"),
    [("linear", "vectors"), ("linear", "tokens")]
    + [(kind, given) for kind in LAYERS if "conv" in kind for given in ("channels first", "channels last")],
)
@torch.inference_mode()
def test_each_row_has_what_its_own_merged_weights_give(kind: str, given: str, active: str | tuple[str, ...]) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    network, loras = nn.Sequential(layer), {"a": lora(layer, 3), "b": lora(layer, 5)}
    rows: list[Row] = [
        tuple(Applied(loras[name], 0.5 + i) for name in names if name in loras) for i, names in enumerate(active)
    ]
    x = INPUTS[given]()
    plain = network(x)

    with Adapters(network).on(rows):
        adapted = network(x)

    for i, row in enumerate(rows):
        wanted = plain[i : i + 1]
        for applied in row:
            [term] = applied.adapter.terms["0"]
            wanted = wanted + applied.weight * run(layer, term.delta(layer.weight), x[i : i + 1])
        # Sums of at most 12 · 9 products of numbers near 1, in another order.
        torch.testing.assert_close(adapted[i : i + 1], wanted, rtol=1e-4, atol=1e-3)
        if not row:
            assert torch.equal(adapted[i], plain[i])
