"""Names of the same weights of a transformer (MMDiT) in the original code and in diffusers, as in `ldm_names.py`.

Two differences are more than names: the original fuses layers with the same input (queries, keys and values) into one
matrix, and in layers that compute a norm's scale and shift, diffusers has the two in the other order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from safelight.errors import CorruptModel
from safelight.models.weights.ldm_names import Modules, inverted, rename, with_prefixes

SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
SD3_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}

FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
FLUX_BLOCK = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
FLUX_SINGLE_FUSED = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}

Fused = dict[str, tuple[str, ...]]
"""By fused layer of the original, diffusers' layers in the order of its rows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One network's module names in both codes."""

    title: str
    modules: Modules
    fused: Fused
    width: int
    """Rows of each part of a fused layer, except the last, which has the rest."""
    swapped: tuple[str, ...]
    """diffusers' modules in which scale and shift are in the other order."""
    whole: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tensors that belong to no module, original to diffusers."""


def sd3_layout(config: Mapping[str, Any]) -> Layout:
    modules, fused, layers = dict(SD3), Fused(), config["num_layers"]
    for layer in range(layers):
        ours, theirs = f"transformer_blocks.{layer}", f"joint_blocks.{layer}"
        modules |= with_prefixes(ours, theirs, SD3_BLOCK)
        fused |= fused_with_prefixes(ours, theirs, SD3_FUSED)
    return Layout(
        title="Stable Diffusion 3",
        modules=modules,
        fused=fused,
        width=width_of(config),
        swapped=("norm_out.linear", f"transformer_blocks.{layers - 1}.norm1_context.linear"),
        whole={"pos_embed": "pos_embed.pos_embed"},
    )


def flux_layout(config: Mapping[str, Any]) -> Layout:
    modules, fused = dict(FLUX), Fused()
    for layer in range(config["num_layers"]):
        ours, theirs = f"transformer_blocks.{layer}", f"double_blocks.{layer}"
        modules |= with_prefixes(ours, theirs, FLUX_BLOCK)
        fused |= fused_with_prefixes(ours, theirs, FLUX_FUSED)
    for layer in range(config["num_single_layers"]):
        ours, theirs = f"single_transformer_blocks.{layer}", f"single_blocks.{layer}"
        modules |= with_prefixes(ours, theirs, FLUX_SINGLE)
        fused |= fused_with_prefixes(ours, theirs, FLUX_SINGLE_FUSED)
    return Layout(title="Flux", modules=modules, fused=fused, width=width_of(config), swapped=("norm_out.linear",))


LAYOUTS: Mapping[str, Callable[[Mapping[str, Any]], Layout]] = {"sd3": sd3_layout, "flux": flux_layout}
"""By family."""


def width_of(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def fused_with_prefixes(ours: str, theirs: str, table: Mapping[str, tuple[str, ...]]) -> Fused:
    return {f"{theirs}.{yours}": tuple(f"{ours}.{name}" for name in mine) for yours, mine in table.items()}


def from_original(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return the network's tensors (any shape) under diffusers' names; views, except the few that are swapped.

    Raises:
        CorruptModel: there are tensors that this kind of network does not have.
    """
    ours = inverted(layout.modules)
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for theirs, tensor in tensors.items():
        module, _, kind = theirs.rpartition(".")
        if theirs in layout.whole:
            found[layout.whole[theirs]] = tensor
        elif names := layout.fused.get(module):
            ends = [layout.width * number for number in range(1, len(names))]
            parts = tensor.tensor_split(ends)
            found |= {f"{name}.{kind}": part for name, part in zip(names, parts, strict=True)}
        elif (name := rename(theirs, ours)) is None:
            unknown.append(theirs)
        elif name.rpartition(".")[0] in layout.swapped:
            found[name] = torch.cat([*reversed(tensor.chunk(2))])
        else:
            # Flux names the weights of a norm `scale`.
            found[name.removesuffix("scale") + "weight" if kind == "scale" else name] = tensor
    if unknown:
        raise CorruptModel(
            f"the network has {len(unknown)} tensors that {layout.title}'s does not have, the first is {unknown[0]}"
        )
    return found
