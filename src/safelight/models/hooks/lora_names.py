"""What each layer of a network is called in every dialect, worked out from the network itself.

Flattening a name (`mid_block.attentions.0` to `mid_block_attentions_0`) loses nothing that matters, and unflattening it
is guesswork; so known names are flattened and looked up, and nothing is guessed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from safelight.models.hooks.lora_terms import Layer
from safelight.models.weights.mmdit_names import LAYOUTS

RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""ldm's words for the layers of a residual block."""
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
OLD_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""diffusers' old words for the text encoder's attention."""


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """Everything that a LoRA may be for, by path."""
    return {path: module for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def flat(name: str) -> str:
    return name.replace(".", "_")


Names = dict[str, tuple[str, ...]]
"""By flat name, the paths of the layers that are one there."""


def denoiser_names(network: nn.Module) -> Names:
    """diffusers' own, the original code's, and the old `to_out` for `to_out.0`."""
    layers = layers_of(network)
    names: Names = {flat(path): (path,) for path in layers}
    names |= {flat(path.removesuffix(".0")): (path,) for path in layers if path.endswith(".to_out.0")}
    original = transformer_paths(network)
    original |= {theirs: (ours,) for ours, theirs in ldm_paths(network).items()}
    return names | {flat(theirs): ours for theirs, ours in original.items() if layers.keys() >= {*ours}}


def text_names(encoder: nn.Module) -> Names:
    """Files have transformers 4's prefix `text_model`, which its newer networks lack in part."""
    names: Names = {}
    for path in layers_of(encoder):
        bare = path.removeprefix("text_model.")
        owner, _, last = bare.rpartition(".")
        for name in (bare, f"{owner}.{OLD_ATTENTION.get(last, last)}"):
            names |= {flat(name): (path,), flat(f"text_model.{name}"): (path,)}
    return names


def transformer_paths(network: Any) -> Names:
    """diffusers' paths by the original code's, for a transformer; not of layers whose rows are in another order."""
    if not hasattr(network, "transformer_blocks"):
        return {}
    family = "flux" if hasattr(network, "single_transformer_blocks") else "sd3"
    layout = LAYOUTS[family](network.config)
    plain = {theirs: (ours,) for ours, theirs in layout.modules.items() if ours not in layout.swapped}
    return plain | layout.fused


def ldm_paths(unet: Any) -> dict[str, str]:
    """ldm's path by diffusers' path, for a UNet2DConditionModel of any depth; none for a transformer.

    ldm numbers what diffusers groups: each residual block with its attention is one block, each downsampler another,
    and an upsampler belongs to the block before it.
    """
    modules = dict(unet.named_modules())
    if "down_blocks" not in modules:
        return {}
    found: dict[str, str] = {}
    for theirs, ours in pairs(unet):
        for path in modules:
            if path == ours or path.startswith(f"{ours}."):
                inner = path.removeprefix(ours).removeprefix(".")
                found[path] = f"{theirs}.{RESNET.get(inner, inner)}".removesuffix(".")
    return found | {ours: theirs for ours, theirs in OUTSIDE.items() if ours in modules}


def pairs(unet: Any) -> Iterator[tuple[str, str]]:
    """(ldm's, diffusers') path of each residual block, attention and sampler."""
    number = 1
    for b, block in enumerate(unet.down_blocks):
        for i in range(len(block.resnets)):
            yield f"input_blocks.{number}.0", f"down_blocks.{b}.resnets.{i}"
            if hasattr(block, "attentions"):
                yield f"input_blocks.{number}.1", f"down_blocks.{b}.attentions.{i}"
            number += 1
        if block.downsamplers is not None:
            yield f"input_blocks.{number}.0.op", f"down_blocks.{b}.downsamplers.0.conv"
            number += 1
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    number = 0
    for b, block in enumerate(unet.up_blocks):
        attends = hasattr(block, "attentions")
        for i in range(len(block.resnets)):
            yield f"output_blocks.{number}.0", f"up_blocks.{b}.resnets.{i}"
            if attends:
                yield f"output_blocks.{number}.1", f"up_blocks.{b}.attentions.{i}"
            if block.upsamplers is not None and i == len(block.resnets) - 1:
                yield f"output_blocks.{number}.{2 if attends else 1}.conv", f"up_blocks.{b}.upsamplers.0.conv"
            number += 1


def block_names(unet: nn.Module) -> Mapping[str, tuple[str, ...]]:
    """By path, the names under which weights by block reach a layer, the finest first: `IN04` and `down`."""
    names: dict[str, tuple[str, ...]] = {}
    for path, theirs in ldm_paths(unet).items():
        kind, _, rest = theirs.partition(".")
        number = rest.partition(".")[0]
        match kind:
            case "input_blocks":
                names[path] = (f"IN{int(number):02}", "down")
            case "middle_block":
                names[path] = ("M00", "mid")
            case "output_blocks":
                names[path] = (f"OUT{int(number):02}", "up")
            case _:
                pass
    return names
