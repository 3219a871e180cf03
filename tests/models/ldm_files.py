"""Tiny checkpoints in the single-file layout, named and shaped as the original code's modules name and shape them.

Written from that code's structure (openaimodel.py, model.py of the autoencoder, CLIP, OpenCLIP) and not from our
tables, so that a mistake in a table shows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]
WORDS, T5_WORDS = 49_408, 32_128


@dataclass(frozen=True, kw_only=True)
class Ldm:
    """What a configuration file of the original code says, as small as its rules allow."""

    channels: tuple[int, ...] = (64, 128)
    depths: tuple[int, ...] = (0, 1)
    """Transformer blocks at each resolution."""
    middle: int = 1
    in_channels: int = 4
    context: int = 64
    linear: bool = False
    label: int = 0
    """Width of SDXL's extra conditions."""
    layers: int = 1
    vae: tuple[int, ...] = (32, 32, 64)
    clip: tuple[str, int] | None = None
    """Where CLIP's text encoder is, and its width."""
    open_clip: tuple[str, int] | None = None
    text_layers: int = 3
    metadata: Mapping[str, str] = field(default_factory=dict)


KINDS: dict[str, Ldm] = {
    "sd1": Ldm(clip=("cond_stage_model.transformer.", 64)),
    "sd2": Ldm(linear=True, open_clip=("cond_stage_model.model.", 64)),
    "sdxl": Ldm(
        channels=(64, 128, 128),
        depths=(0, 1, 2),
        middle=2,
        context=64 + 128,
        linear=True,
        label=128 + 6 * 256,
        clip=("conditioner.embedders.0.transformer.", 64),
        open_clip=("conditioner.embedders.1.model.", 128),
    ),
    "sdxl-refiner": Ldm(
        channels=(64, 128, 128, 128),
        depths=(0, 1, 1, 0),
        context=128,
        linear=True,
        label=128 + 5 * 256,
        vae=(32, 32, 64),
        open_clip=("conditioner.embedders.0.model.", 128),
    ),
    "inpaint": Ldm(in_channels=9, clip=("cond_stage_model.transformer.", 64)),
    "edit": Ldm(in_channels=8, clip=("cond_stage_model.transformer.", 64)),
}


@dataclass(frozen=True, kw_only=True)
class Mmdit:
    """Stable Diffusion 3: heads as many as layers, each 64 wide, as in Stability's code."""

    layers: int = 2
    twice: int = 1
    """Blocks from the first that attend to the picture a second time."""
    norms: bool = True
    joint: int = 192
    widths: tuple[int, int] = (64, 128)
    """Of CLIP's two text encoders."""
    text_layers: int = 2
    positions: int = 12
    patch: int = 2
    channels: int = 16
    projected: bool = True
    """The smaller one has its projection in the file."""
    t5: bool = False


def write_sd3(path: Path, about: Mmdit = Mmdit(), *, change: Callable[[dict[str, Tensor]], object] = len) -> Path:
    generator = torch.Generator().manual_seed(6)
    tensors = {name: random(name, shape, generator) for name, shape in sd3_checkpoint(about)}
    change(tensors)
    save_file(tensors, path)
    return path


def sd3_checkpoint(about: Mmdit) -> Shapes:
    yield from under("model.diffusion_model.", mmdit(about))
    yield from under("first_stage_model.", autoencoder((32, 32, 64), latents=about.channels, quantised=False))
    for name, width in zip(("clip_l", "clip_g"), about.widths, strict=True):
        yield from under(f"text_encoders.{name}.transformer.", clip(width, about.text_layers))
        if name == "clip_g" or about.projected:
            yield f"text_encoders.{name}.transformer.text_projection.weight", (width, width)
    if about.t5:
        yield from under("text_encoders.t5xxl.transformer.", t5(about.joint))


def mmdit(about: Mmdit) -> Shapes:
    width = 64 * about.layers
    yield "pos_embed", (1, about.positions**2, width)
    yield "x_embedder.proj.weight", (width, about.channels, about.patch, about.patch)
    yield "x_embedder.proj.bias", (width,)
    for name, inner in (("t_embedder", 256), ("y_embedder", sum(about.widths))):
        yield from layer(f"{name}.mlp.0", width, inner)
        yield from layer(f"{name}.mlp.2", width, width)
    yield from layer("context_embedder", width, about.joint)
    for number in range(about.layers):
        last, twice = number == about.layers - 1, number < about.twice
        yield from under(f"joint_blocks.{number}.context_block.", mmdit_block(width, about, bare=last))
        yield from under(f"joint_blocks.{number}.x_block.", mmdit_block(width, about, twice=twice))
    yield from layer("final_layer.linear", about.patch**2 * about.channels, width)
    yield from layer("final_layer.adaLN_modulation.1", 2 * width, width)


def mmdit_block(width: int, about: Mmdit, *, bare: bool = False, twice: bool = False) -> Shapes:
    """`bare`: nothing is read of what it would put out."""
    for attention in ("attn", "attn2")[: 1 + twice]:
        yield from layer(f"{attention}.qkv", 3 * width, width)
        if about.norms:
            yield f"{attention}.ln_q.weight", (64,)
            yield f"{attention}.ln_k.weight", (64,)
        if not bare:
            yield from layer(f"{attention}.proj", width, width)
    yield from layer("adaLN_modulation.1", (2 if bare else 9 if twice else 6) * width, width)
    if not bare:
        yield from layer("mlp.fc1", 4 * width, width)
        yield from layer("mlp.fc2", width, 4 * width)


def write(
    path: Path, kind: str, *, dtype: torch.dtype = torch.float32, change: Callable[[dict[str, Tensor]], object] = len
) -> Path:
    """A checkpoint of random weights; `change` may spoil its tensors before they are written."""
    about = KINDS[kind]
    generator = torch.Generator().manual_seed(5)
    tensors = {name: random(name, shape, generator).to(dtype) for name, shape in checkpoint(about)}
    change(tensors)
    save_file(tensors, path, metadata=dict(about.metadata) or None)
    return path


def random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * noise  # a norm's
    fan_in = noise[0].numel() if len(shape) > 1 else 100
    return noise / fan_in**0.5


def checkpoint(about: Ldm) -> Shapes:
    yield from under("model.diffusion_model.", unet(about))
    yield from under("first_stage_model.", autoencoder(about.vae))
    if about.clip:
        yield from under(about.clip[0], clip(about.clip[1], about.text_layers))
    if about.open_clip:
        yield from under(about.open_clip[0], open_clip(about.open_clip[1], about.text_layers))


def under(prefix: str, shapes: Shapes) -> Shapes:
    return ((prefix + name, shape) for name, shape in shapes)


def layer(name: str, *shape: int) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def unet(about: Ldm) -> Shapes:
    first = about.channels[0]
    time = 4 * first
    yield from layer("time_embed.0", time, first)
    yield from layer("time_embed.2", time, time)
    if about.label:
        yield from layer("label_emb.0.0", time, about.label)
        yield from layer("label_emb.0.2", time, time)
    yield from layer("input_blocks.0.0", first, about.in_channels, 3, 3)
    skips, width, number = [first], first, 1
    for level, (channels, depth) in enumerate(zip(about.channels, about.depths, strict=True)):
        for _ in range(about.layers):
            yield from resnet(f"input_blocks.{number}.0", width, channels, time)
            width = channels
            if depth:
                yield from transformer(f"input_blocks.{number}.1", width, depth, about)
            skips.append(width)
            number += 1
        if level < len(about.channels) - 1:
            yield from layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            skips.append(width)
            number += 1
    yield from resnet("middle_block.0", width, width, time)
    yield from transformer("middle_block.1", width, about.middle, about)
    yield from resnet("middle_block.2", width, width, time)
    number = 0
    for level, (channels, depth) in reversed(list(enumerate(zip(about.channels, about.depths, strict=True)))):
        for place in range(about.layers + 1):
            yield from resnet(f"output_blocks.{number}.0", width + skips.pop(), channels, time)
            width = channels
            if depth:
                yield from transformer(f"output_blocks.{number}.1", width, depth, about)
            if level and place == about.layers:
                yield from layer(f"output_blocks.{number}.{2 if depth else 1}.conv", width, width, 3, 3)
            number += 1
    yield from norm("out.0", first)
    yield from layer("out.2", 4, first, 3, 3)


def resnet(name: str, width: int, channels: int, time: int) -> Shapes:
    yield from norm(f"{name}.in_layers.0", width)
    yield from layer(f"{name}.in_layers.2", channels, width, 3, 3)
    yield from layer(f"{name}.emb_layers.1", channels, time)
    yield from norm(f"{name}.out_layers.0", channels)
    yield from layer(f"{name}.out_layers.3", channels, channels, 3, 3)
    if width != channels:
        yield from layer(f"{name}.skip_connection", channels, width, 1, 1)


def transformer(name: str, width: int, depth: int, about: Ldm) -> Shapes:
    projection = (width, width) if about.linear else (width, width, 1, 1)
    yield from norm(f"{name}.norm", width)
    yield from layer(f"{name}.proj_in", *projection)
    for block in (f"{name}.transformer_blocks.{number}" for number in range(depth)):
        for attention, context in (("attn1", width), ("attn2", about.context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, context)
            yield f"{block}.{attention}.to_v.weight", (width, context)
            yield from layer(f"{block}.{attention}.to_out.0", width, width)
        yield from layer(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from layer(f"{block}.ff.net.2", width, 4 * width)
        for number in (1, 2, 3):
            yield from norm(f"{block}.norm{number}", width)
    yield from layer(f"{name}.proj_out", *projection)


def autoencoder(levels: tuple[int, ...], *, latents: int = 4, quantised: bool = True) -> Shapes:
    yield from layer("encoder.conv_in", levels[0], 3, 3, 3)
    width = levels[0]
    for level, channels in enumerate(levels):
        for number in range(2):
            yield from picture_resnet(f"encoder.down.{level}.block.{number}", width, channels)
            width = channels
        if level < len(levels) - 1:
            yield from layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from bottleneck("encoder", width)
    yield from norm("encoder.norm_out", width)
    yield from layer("encoder.conv_out", 2 * latents, width, 3, 3)
    yield from layer("decoder.conv_in", width, latents, 3, 3)
    yield from bottleneck("decoder", width)
    for level, channels in reversed(list(enumerate(levels))):
        for number in range(3):
            yield from picture_resnet(f"decoder.up.{level}.block.{number}", width, channels)
            width = channels
        if level:
            yield from layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from norm("decoder.norm_out", width)
    yield from layer("decoder.conv_out", 3, width, 3, 3)
    if quantised:
        yield from layer("quant_conv", 2 * latents, 2 * latents, 1, 1)
        yield from layer("post_quant_conv", latents, latents, 1, 1)


def bottleneck(half: str, width: int) -> Shapes:
    yield from picture_resnet(f"{half}.mid.block_1", width, width)
    yield from norm(f"{half}.mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        yield from layer(f"{half}.mid.attn_1.{name}", width, width, 1, 1)
    yield from picture_resnet(f"{half}.mid.block_2", width, width)


def picture_resnet(name: str, width: int, channels: int) -> Shapes:
    yield from norm(f"{name}.norm1", width)
    yield from layer(f"{name}.conv1", channels, width, 3, 3)
    yield from norm(f"{name}.norm2", channels)
    yield from layer(f"{name}.conv2", channels, channels, 3, 3)
    if width != channels:
        yield from layer(f"{name}.nin_shortcut", channels, width, 1, 1)


def clip(width: int, layers: int) -> Shapes:
    yield "text_model.embeddings.token_embedding.weight", (WORDS, width)
    yield "text_model.embeddings.position_embedding.weight", (77, width)
    for block in (f"text_model.encoder.layers.{number}" for number in range(layers)):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from layer(f"{block}.self_attn.{name}", width, width)
        yield from norm(f"{block}.layer_norm1", width)
        yield from layer(f"{block}.mlp.fc1", 4 * width, width)
        yield from layer(f"{block}.mlp.fc2", width, 4 * width)
        yield from norm(f"{block}.layer_norm2", width)
    yield from norm("text_model.final_layer_norm", width)


def t5(width: int, *, layers: int = 2, heads: int = 2, words: int = T5_WORDS) -> Shapes:
    """The encoder of T5 v1.1, as transformers names it; heads are 64 wide."""
    yield "shared.weight", (words, width)
    for number in range(layers):
        attention, dense = (f"encoder.block.{number}.layer.{place}" for place in (0, 1))
        for name in "qkv":
            yield f"{attention}.SelfAttention.{name}.weight", (64 * heads, width)
        yield f"{attention}.SelfAttention.o.weight", (width, 64 * heads)
        if number == 0:
            yield f"{attention}.SelfAttention.relative_attention_bias.weight", (32, heads)
        yield f"{attention}.layer_norm.weight", (width,)
        for name in ("wi_0", "wi_1"):
            yield f"{dense}.DenseReluDense.{name}.weight", (3 * width, width)
        yield f"{dense}.DenseReluDense.wo.weight", (width, 3 * width)
        yield f"{dense}.layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)


def open_clip(width: int, layers: int) -> Shapes:
    yield "positional_embedding", (77, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "token_embedding.weight", (WORDS, width)
    for block in (f"transformer.resblocks.{number}" for number in range(layers)):
        yield from norm(f"{block}.ln_1", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from layer(f"{block}.attn.out_proj", width, width)
        yield from norm(f"{block}.ln_2", width)
        yield from layer(f"{block}.mlp.c_fc", 4 * width, width)
        yield from layer(f"{block}.mlp.c_proj", width, 4 * width)
    yield from norm("ln_final", width)


def flux(
    *, width: int, joint: int, pooled: int, head: int, blocks: int = 2, guidance: bool = True, columns: int = 0
) -> Shapes:
    """Names and shapes of the original code (model.py, modules/layers.py); `columns`: of every matrix, to save room."""

    def linear(name: str, rows: int, inner: int) -> Shapes:
        yield from layer(name, rows, columns or inner)

    def norms(name: str) -> Shapes:
        yield f"{name}.norm.query_norm.scale", (head,)
        yield f"{name}.norm.key_norm.scale", (head,)

    yield from linear("img_in", width, 64)
    yield from linear("txt_in", width, joint)
    for name, inner in [("time_in", 256), ("vector_in", pooled), *([("guidance_in", 256)] if guidance else [])]:
        yield from linear(f"{name}.in_layer", width, inner)
        yield from linear(f"{name}.out_layer", width, width)
    for number in range(blocks):
        for side in ("img", "txt"):
            inside = f"double_blocks.{number}.{side}"
            yield from linear(f"{inside}_mod.lin", 6 * width, width)
            yield from linear(f"{inside}_attn.qkv", 3 * width, width)
            yield from norms(f"{inside}_attn")
            yield from linear(f"{inside}_attn.proj", width, width)
            yield from linear(f"{inside}_mlp.0", 4 * width, width)
            yield from linear(f"{inside}_mlp.2", width, 4 * width)
    for number in range(blocks):
        inside = f"single_blocks.{number}"
        yield from linear(f"{inside}.linear1", 7 * width, width)
        yield from linear(f"{inside}.linear2", width, 5 * width)
        yield from norms(inside)
        yield from linear(f"{inside}.modulation.lin", 3 * width, width)
    yield from linear("final_layer.linear", 64, width)
    yield from linear("final_layer.adaLN_modulation.1", 2 * width, width)


def filled(shapes: Shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    return {name: random(name, shape, generator) for name, shape in shapes}


def write_flux(path: Path, *, change: Callable[[dict[str, Tensor]], object] = len, **about: Any) -> Path:
    tensors = filled(flux_checkpoint(**about))
    change(tensors)
    save_file(tensors, path)
    return path


def flux_checkpoint(*, guidance: bool = True, blocks: int = 2) -> Shapes:
    """With all its parts, as ComfyUI writes it; heads are 128 wide, as in every Flux."""
    network = flux(width=128, joint=64, pooled=64, head=128, blocks=blocks, guidance=guidance)
    yield from under("model.diffusion_model.", network)
    yield from under("vae.", autoencoder((32, 32, 64), latents=16, quantised=False))
    yield from under("text_encoders.clip_l.transformer.", clip(64, 2))
    yield "text_encoders.clip_l.transformer.text_projection.weight", (64, 64)
    yield "text_encoders.clip_l.logit_scale", ()
    yield from under("text_encoders.t5xxl.transformer.", t5(64))
