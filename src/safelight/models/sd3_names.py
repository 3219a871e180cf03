"""What Stability's code and diffusers call the same weights of Stable Diffusion 3; read as `ldm_names.py` is.

Two things are no renaming: queries, keys and values are one matrix there, and where a norm is told by one layer how to
scale and how to shift, diffusers has these two the other way round.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from safelight.errors import CorruptModel
from safelight.models.ldm_names import Modules, inside, rename, turned

WHOLE = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
BLOCK = {
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
FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
POSITIONS, POSITIONS_THERE = "pos_embed.pos_embed", "pos_embed"


def transformer_modules(layers: int) -> Modules:
    modules = dict(WHOLE)
    for layer in range(layers):
        modules |= inside(f"transformer_blocks.{layer}", f"joint_blocks.{layer}", BLOCK)
    return modules


def transformer_from_original(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The network's tensors under diffusers' names.

    Raises:
        CorruptModel: there are some that Stable Diffusion 3 does not have.
    """
    ours = turned(transformer_modules(layers))
    swapped = ("norm_out.linear.", f"transformer_blocks.{layers - 1}.norm1_context.linear.")
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for theirs, tensor in tensors.items():
        if theirs == POSITIONS_THERE:
            found[POSITIONS] = tensor
        elif parts := unfused(theirs, tensor):
            found |= parts
        elif (name := rename(theirs, ours)) is None:
            unknown.append(theirs)
        elif name.startswith(swapped):
            found[name] = torch.cat([*reversed(tensor.chunk(2))])
        else:
            found[name] = tensor
    if unknown:
        raise CorruptModel(
            f"the network has {len(unknown)} tensors that Stable Diffusion 3's does not have, the first is {unknown[0]}"
        )
    return found


def unfused(theirs: str, tensor: Tensor) -> dict[str, Tensor]:
    """Queries, keys and values apart; nothing where it is another layer."""
    block, _, rest = theirs.partition(".")[2].partition(".")
    layer, _, kind = rest.rpartition(".")
    names = FUSED.get(layer, ())
    return {
        f"transformer_blocks.{block}.{name}.{kind}": part for name, part in zip(names, tensor.chunk(3), strict=False)
    }
