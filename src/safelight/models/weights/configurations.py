"""Derive the configurations of networks in the original layout from the shapes of their tensors.

Widths, depths and counts are in the shapes. Everything else is the same in every checkpoint of a family, and is a
constant here.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from safelight.models.weights.identify import UNET, Base
from safelight.models.weights.safetensors_file import Header

Configuration = dict[str, Any]
HEAD_WIDTH = 64
"""Width of attention heads, except in Stable Diffusion 1's network, which has eight heads of any width."""
SD1_HEADS = 8
BEGIN_ID, END_ID = 49406, 49407
FLUX_AXES = (16, 56, 56)
"""How Flux divides a head's width among the position axes: text, row, column."""
FLUX_GUIDANCE = "guidance_in.in_layer.weight"
XL_SAMPLE_SIZE = 128
"""Latent size that SDXL and later networks were trained for."""
SIZE_CONDITIONED = ("sdxl", "sdxl-refiner")


@dataclass(frozen=True, slots=True)
class TextPart:
    prefix: str
    open_clip: bool
    """OpenCLIP's names, its fused attention input, and "!" for padding; else CLIP's as transformers writes them."""
    has_projection: bool = False
    unused_layers: int = 0
    """Last layers that the family never uses."""
    transformers_names: bool = False
    """OpenCLIP's network with the tensor names of transformers."""

    @property
    def has_open_clip_names(self) -> bool:
        """Whether its tensors have OpenCLIP's names."""
        return self.open_clip and not self.transformers_names


class MissingTensors(Exception):
    """The message names what the checkpoint lacks, as the rest of a sentence."""


class Shapes:
    """The shapes of one part, by names without the part's prefix."""

    def __init__(self, header: Header, prefix: str) -> None:
        self.prefix = prefix
        named = {name: entry.shape for name, entry in header.tensors.items() if name.startswith(prefix)}
        self.shapes = {name.removeprefix(prefix): shape for name, shape in named.items()}

    def __call__(self, name: str, *, dims: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tensor's shape, which must have one of these numbers of dimensions."""
        if name not in self.shapes:
            raise MissingTensors(f"{self.prefix}{name}")
        if len(self.shapes[name]) not in dims or 0 in self.shapes[name]:
            raise MissingTensors(
                f"a {self.prefix}{name} of {' or '.join(map(str, dims))} dimensions: it is {self.shapes[name]}"
            )
        return self.shapes[name]

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def count(self, pattern: str) -> int:
        """Count the different numbers that the pattern's group matches, at the start of names."""
        found = (re.match(pattern, name) for name in self.shapes)
        return len({match[1] for match in found if match})

    def first(self, pattern: str) -> str:
        """Return the first name in which the pattern is found."""
        for name in self.shapes:
            if re.search(pattern, name):
                return name
        raise MissingTensors(f"any tensor {self.prefix}{pattern}")


def unet_configuration(shapes: Shapes, family: Base) -> Configuration:
    """Return the UNet's configuration. Blocks are separated by downsamplers and have equal numbers of layers."""
    channels: list[int] = []
    depths: list[int] = []
    layers = 0
    for number in range(1, shapes.count(r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            layers = 0
            continue
        if layers == 0:
            channels.append(shapes(f"input_blocks.{number}.0.out_layers.3.weight", dims=(4,))[0])
            depths.append(shapes.count(rf"input_blocks\.{number}\.1\.transformer_blocks\.(\d+)\."))
        layers += 1
    if not layers:
        raise MissingTensors(f"{UNET}input_blocks")
    middle = shapes.count(r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    projection = shapes(shapes.first(r"transformer_blocks.*attn2\.to_k\.weight$"), dims=(2,))
    configuration: Configuration = {
        "in_channels": shapes("input_blocks.0.0.weight", dims=(4,))[1],
        "out_channels": shapes("out.2.weight", dims=(4,))[0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "cross_attention_dim": projection[1],
        "attention_head_dim": SD1_HEADS if family == "sd1" else [width // HEAD_WIDTH for width in channels],
        "use_linear_projection": len(shapes(shapes.first(r"\.1\.proj_in\.weight$"), dims=(2, 4))) == 2,
        # The mid block is as deep as the last block; a block without attention has no depth.
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), depths[-1] or middle],
    }
    if family == "sd2":
        configuration["upcast_attention"] = True
    if family in SIZE_CONDITIONED:
        width = shapes("label_emb.0.0.weight", dims=(2,))[1]
        configuration |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": width,
        }
    return configuration


def vae_configuration(shapes: Shapes) -> Configuration:
    if not shapes.shapes:
        raise MissingTensors("an autoencoder (first_stage_model): get a file that includes it")
    blocks = shapes.count(r"encoder\.down\.(\d+)\.")
    channels = [shapes(f"encoder.down.{block}.block.0.conv2.weight", dims=(4,))[0] for block in range(blocks)]
    if not channels:
        raise MissingTensors(f"{shapes.prefix}encoder.down")
    return {
        "in_channels": shapes("encoder.conv_in.weight", dims=(4,))[1],
        "out_channels": shapes("decoder.conv_out.weight", dims=(4,))[0],
        "latent_channels": shapes("decoder.conv_in.weight", dims=(4,))[1],
        "block_out_channels": channels,
        "layers_per_block": shapes.count(r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def sd3_configuration(shapes: Shapes) -> Configuration:
    """Return Stable Diffusion 3's configuration: heads are as wide as the query norms, where it has these."""
    width, channels = shapes("x_embedder.proj.weight", dims=(4,))[:2]
    layers = shapes.count(r"joint_blocks\.(\d+)\.")
    norm = "joint_blocks.0.x_block.attn.ln_q.weight"
    head_width = shapes(norm, dims=(1,))[0] if norm in shapes else HEAD_WIDTH
    context, joint = shapes("context_embedder.weight", dims=(2,))
    patch = shapes("x_embedder.proj.weight", dims=(4,))[-1]
    twice = [layer for layer in range(layers) if f"joint_blocks.{layer}.x_block.attn2.qkv.weight" in shapes]
    return {
        "sample_size": XL_SAMPLE_SIZE,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes("final_layer.linear.weight", dims=(2,))[0] // patch**2,
        "num_layers": layers,
        "attention_head_dim": head_width,
        "num_attention_heads": width // head_width,
        "joint_attention_dim": joint,
        "caption_projection_dim": context,
        "pooled_projection_dim": shapes("y_embedder.mlp.0.weight", dims=(2,))[1],
        "pos_embed_max_size": math.isqrt(shapes("pos_embed", dims=(3,))[1]),
        "dual_attention_layers": twice,
        "qk_norm": "rms_norm" if norm in shapes else None,
    }


def flux_configuration(shapes: Shapes) -> Configuration:
    width, channels = shapes("img_in.weight", dims=(2,))
    [head_width] = shapes("double_blocks.0.img_attn.norm.query_norm.scale", dims=(1,))
    if head_width != sum(FLUX_AXES):
        raise MissingTensors(f"heads of {sum(FLUX_AXES)}: they are {head_width} wide")
    return {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": shapes.count(r"double_blocks\.(\d+)\."),
        "num_single_layers": shapes.count(r"single_blocks\.(\d+)\."),
        "attention_head_dim": head_width,
        "num_attention_heads": width // head_width,
        "joint_attention_dim": shapes("txt_in.weight", dims=(2,))[1],
        "pooled_projection_dim": shapes("vector_in.in_layer.weight", dims=(2,))[1],
        "guidance_embeds": FLUX_GUIDANCE in shapes,
        "axes_dims_rope": list(FLUX_AXES),
    }


def t5_configuration(shapes: Shapes) -> Configuration:
    words, width = shapes("shared.weight", dims=(2,))
    buckets, heads = shapes("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", dims=(2,))
    inner = "encoder.block.0.layer.1.DenseReluDense"
    gated = f"{inner}.wi_0.weight" in shapes
    return {
        "architectures": ["T5EncoderModel"],
        "vocab_size": words,
        "d_model": width,
        "d_kv": shapes("encoder.block.0.layer.0.SelfAttention.q.weight", dims=(2,))[0] // heads,
        "d_ff": shapes(f"{inner}.{'wi_0' if gated else 'wi'}.weight", dims=(2,))[0],
        "num_layers": shapes.count(r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "is_encoder_decoder": False,
    }


def clip_configuration(shapes: Shapes, part: TextPart) -> Configuration:
    """Return CLIP's configuration. Some early checkpoints have names without `text_model.`."""
    inner = "text_model." if "text_model.final_layer_norm.weight" in shapes else ""
    width = shapes(f"{inner}final_layer_norm.weight", dims=(1,))[0]
    projected = shapes("text_projection.weight", dims=(2,))[0] if "text_projection.weight" in shapes else width
    return {
        "architectures": ["CLIPTextModelWithProjection" if part.has_projection else "CLIPTextModel"],
        "hidden_act": "gelu" if part.open_clip else "quick_gelu",
        "vocab_size": shapes(f"{inner}embeddings.token_embedding.weight", dims=(2,))[0],
        "max_position_embeddings": shapes(f"{inner}embeddings.position_embedding.weight", dims=(2,))[0],
        "num_hidden_layers": shapes.count(rf"{re.escape(inner)}encoder\.layers\.(\d+)\."),
        "intermediate_size": shapes(f"{inner}encoder.layers.0.mlp.fc1.weight", dims=(2,))[0],
        "projection_dim": projected,
        **width_and_ends(width),
    }


def open_clip_configuration(shapes: Shapes, part: TextPart) -> Configuration:
    width = shapes("ln_final.weight", dims=(1,))[0]
    projection = shapes("text_projection", dims=(2,))[1] if part.has_projection else width
    return {
        "architectures": ["CLIPTextModelWithProjection" if part.has_projection else "CLIPTextModel"],
        "hidden_act": "gelu",
        "vocab_size": shapes("token_embedding.weight", dims=(2,))[0],
        "max_position_embeddings": shapes("positional_embedding", dims=(2,))[0],
        "num_hidden_layers": shapes.count(r"transformer\.resblocks\.(\d+)\.") - part.unused_layers,
        "intermediate_size": shapes("transformer.resblocks.0.mlp.c_fc.weight", dims=(2,))[0],
        "projection_dim": projection,
        **width_and_ends(width),
    }


def width_and_ends(width: int) -> Configuration:
    return {
        "hidden_size": width,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
    }
