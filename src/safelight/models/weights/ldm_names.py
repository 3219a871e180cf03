"""Tables of the names of the same weights in the original latent-diffusion code (ldm) and in diffusers.

A single-file checkpoint names its tensors after the modules of CompVis' and Stability's code; diffusers builds the same
networks from other blocks. `unet_modules` and the like map a network's module names from diffusers to ldm; `rename`
converts a parameter's name; `inverted` gives the map from ldm to diffusers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Modules = dict[str, str]

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

VAE = {
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    "encoder.conv_in": "encoder.conv_in",
    "encoder.conv_norm_out": "encoder.norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.conv_norm_out": "decoder.norm_out",
    "decoder.conv_out": "decoder.conv_out",
}
VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
"""The last four are 1x1 convolutions in ldm, and linear layers in diffusers."""

OPEN_CLIP = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""And `attn.in_proj_weight`, `attn.in_proj_bias`: the rows of q_proj, k_proj and v_proj, concatenated."""
IN_PROJ = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def unet_modules(config: Mapping[str, Any]) -> Modules:
    """Map the UNet's modules: ldm numbers the blocks of each half consecutively; diffusers groups them by level."""
    modules = dict(UNET)
    layers, down, up = config["layers_per_block"], config["down_block_types"], config["up_block_types"]
    number = 1
    for block, kind in enumerate(down):
        for layer in range(layers):
            modules |= with_prefixes(f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{number}.0", UNET_RESNET)
            if has_attention(kind):
                modules[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if block < len(down) - 1:
            modules[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1

    modules |= with_prefixes("mid_block.resnets.0", "middle_block.0", UNET_RESNET)
    modules["mid_block.attentions.0"] = "middle_block.1"
    modules |= with_prefixes("mid_block.resnets.1", "middle_block.2", UNET_RESNET)

    number = 0
    for block, kind in enumerate(up):
        for layer in range(layers + 1):
            modules |= with_prefixes(f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{number}.0", UNET_RESNET)
            if has_attention(kind):
                modules[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            if layer == layers and block < len(up) - 1:
                place = 2 if has_attention(kind) else 1
                modules[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number}.{place}.conv"
            number += 1
    return modules


def vae_modules(config: Mapping[str, Any]) -> Modules:
    """Map the VAE's modules: ldm numbers the decoder's blocks from the image side, diffusers from the latent side."""
    modules = dict(VAE)
    blocks, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for half in ("encoder", "decoder"):
        modules |= with_prefixes(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", VAE_RESNET)
        modules |= with_prefixes(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
        modules |= with_prefixes(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", VAE_RESNET)
    for block in range(blocks):
        encoder, decoder = (f"encoder.down.{block}", f"decoder.up.{blocks - 1 - block}")
        for layer in range(layers):
            modules |= with_prefixes(
                f"encoder.down_blocks.{block}.resnets.{layer}", f"{encoder}.block.{layer}", VAE_RESNET
            )
        for layer in range(layers + 1):
            modules |= with_prefixes(
                f"decoder.up_blocks.{block}.resnets.{layer}", f"{decoder}.block.{layer}", VAE_RESNET
            )
        if block < blocks - 1:
            modules[f"encoder.down_blocks.{block}.downsamplers.0.conv"] = f"{encoder}.downsample.conv"
            modules[f"decoder.up_blocks.{block}.upsamplers.0.conv"] = f"{decoder}.upsample.conv"
    return modules


def open_clip_modules(config: Mapping[str, Any]) -> Modules:
    """Map OpenCLIP's modules, except attention input, positions and projection, which are not modules in OpenCLIP."""
    modules = dict(OPEN_CLIP)
    for layer in range(config["num_hidden_layers"]):
        modules |= with_prefixes(
            f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}", OPEN_CLIP_LAYER
        )
    return modules


def with_prefixes(ours: str, theirs: str, table: Mapping[str, str]) -> Modules:
    return {f"{ours}.{mine}": f"{theirs}.{yours}" for mine, yours in table.items()}


def has_attention(block_type: str) -> bool:
    return "CrossAttn" in block_type


def rename(name: str, modules: Mapping[str, str]) -> str | None:
    """Return the parameter's name on the other side: the module's prefix is replaced, the rest unchanged."""
    parts: Sequence[str] = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if module in modules:
            return ".".join([modules[module], *parts[length:]])
    return None


def inverted(modules: Mapping[str, str]) -> Modules:
    return {theirs: ours for ours, theirs in modules.items()}
