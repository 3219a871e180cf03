"""A fixed set of LoRAs added to the weights themselves: another model, with a digest of its own.

For a set that every request uses: it costs nothing per step, and is as large in memory as the layers it changes. Sets
that differ from request to request need no merging (`adapters.py`).
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from safelight.models.adapters.lora_effect import ActiveLora
from safelight.models.hooks.adapters import Row
from safelight.models.hooks.lora_names import block_names, layers_of
from safelight.models.networks.encode import TextEncoder
from safelight.models.networks.load import Model
from safelight.models.networks.t5 import T5

N = TypeVar("N", bound=nn.Module)


def merge(model: Model, loras: Sequence[ActiveLora], *, name: str) -> Model:
    """The model with these LoRAs in its weights; the given one stays as it is, and shares what is not changed."""
    unet = merged(model.unet, tuple(applied for active in loras for applied in active.on_unet(active.pinned.start)))
    encoders = [
        TextEncoder(
            encoder.tokenizer, merged(encoder.network, tuple(row for active in loras for row in active.on_text()[i]))
        )
        for i, encoder in enumerate(model.text_encoders)
    ]
    t5 = model.t5 and T5(
        model.t5.tokenizer,
        merged(model.t5.network, tuple(row for active in loras for row in active.on_text()[len(encoders)])),
    )
    digest = digest_of(model, loras)
    # Hooks and cached values belong to the networks that they were made for.
    own: dict[str, Any] = {"hooks": {}, "cache": WeakKeyDictionary()}
    return replace(model, name=name, digest=digest, unet=unet, text_encoders=tuple(encoders), t5=t5, **own)


def digest_of(model: Model, loras: Sequence[ActiveLora]) -> str:
    """sha256 over what went into the merge."""
    uses = [active.pinned.model_dump(mode="json", exclude_defaults=True, exclude={"name"}) for active in loras]
    made_of = json.dumps({"model": model.digest, "loras": uses}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(made_of.encode()).hexdigest()


def merged(network: N, row: Row) -> N:
    """A copy that has tensors of its own only for the layers that the row changes."""
    if not row:
        return network
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    layers = layers_of(twin)
    for layer in layers.values():
        layer._forward_hooks.clear()  # pyright: ignore[reportPrivateUsage]  those of the original's adapters
        # A back end may have given the original's layers a forward of their own, over its own weights.
        layer.__dict__.pop("forward", None)
    blocks = block_names(twin) if hasattr(twin, "down_blocks") else {}
    for path in {path for applied in row for path in applied.adapter.terms}:
        weight = layers[path].weight
        whole = weight.float()
        for applied in row:
            scale = applied.weight_in(blocks.get(path, ()))
            for term in applied.adapter.terms.get(path, ()):
                whole = whole + scale * term.delta(weight).float()
        layers[path].weight = nn.Parameter(whole.to(weight.dtype), requires_grad=False)
    return twin
