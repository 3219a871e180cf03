"""Tiny random ControlNets, T2I-Adapters and IP-Adapters for a tiny model, and their files in each format.

The tensor names come from the authors' code, not from safelight's tables, so that tests find mistakes in the tables.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tests.fakes import Steering, spec_for
from tests.tiny_models import CPU, SIDE, seeded
from torch import Tensor

from safelight.models.adapters.control import load_control
from safelight.models.adapters.control_effect import ActiveControl
from safelight.models.adapters.control_file import describe_control
from safelight.models.adapters.ip_effect import IpAdapterEffect
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.networks.load import Model
from safelight.spec import PicturePromptRequest
from safelight.spec.effects import PinnedControl

HINTS = (8, 12, 16)
"""One width more than there are halvings: the autoencoder of the tiny models downsamples by 4."""
HINT, OTHER_HINT, LOOK, OTHER_LOOK = "c" * 64, "d" * 64, "e" * 64, "f" * 64
"""Digests of pictures, as specs name them."""
LDM = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0.norm1": "input_blocks.1.0.in_layers.0",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.resnets.0.time_emb_proj": "input_blocks.1.0.emb_layers.1",
    "down_blocks.0.resnets.0.norm2": "input_blocks.1.0.out_layers.0",
    "down_blocks.0.resnets.0.conv2": "input_blocks.1.0.out_layers.3",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0.norm1": "input_blocks.3.0.in_layers.0",
    "down_blocks.1.resnets.0.conv1": "input_blocks.3.0.in_layers.2",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks.3.0.emb_layers.1",
    "down_blocks.1.resnets.0.norm2": "input_blocks.3.0.out_layers.0",
    "down_blocks.1.resnets.0.conv2": "input_blocks.3.0.out_layers.3",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.3.0.skip_connection",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0.norm1": "middle_block.0.in_layers.0",
    "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
    "mid_block.resnets.0.time_emb_proj": "middle_block.0.emb_layers.1",
    "mid_block.resnets.0.norm2": "middle_block.0.out_layers.0",
    "mid_block.resnets.0.conv2": "middle_block.0.out_layers.3",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1.norm1": "middle_block.2.in_layers.0",
    "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "mid_block.resnets.1.norm2": "middle_block.2.out_layers.0",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.blocks.0": "input_hint_block.2",
    "controlnet_cond_embedding.blocks.1": "input_hint_block.4",
    "controlnet_cond_embedding.blocks.2": "input_hint_block.6",
    "controlnet_cond_embedding.blocks.3": "input_hint_block.8",
    "controlnet_cond_embedding.conv_out": "input_hint_block.10",
    "controlnet_down_blocks.0": "zero_convs.0.0",
    "controlnet_down_blocks.1": "zero_convs.1.0",
    "controlnet_down_blocks.2": "zero_convs.2.0",
    "controlnet_down_blocks.3": "zero_convs.3.0",
    "controlnet_mid_block": "middle_block_out.0",
}


def controlnet(model: Model, *, seed: int = 11, **config: Any) -> Any:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    hints = {"conditioning_embedding_out_channels": HINTS}
    network = seeded(seed, lambda: ControlNetModel.from_unet(model.unet, load_weights_from_unet=False, **hints))
    network.register_to_config(**config)
    # As random as the rest, it would hardly show.
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        layer.weight.data *= 2.0
    return network.eval()


def union(model: Model, *, kinds: int = 6, seed: int = 15) -> Any:
    """A ControlNet Union; diffusers' `from_unet` supports only six kinds of hints."""
    from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel

    config = dict(model.unet.config)
    shared = inspect.signature(ControlNetUnionModel.__init__).parameters.keys() & config.keys()
    own = {"num_control_type": kinds, "num_trans_channel": 8, "num_proj_channel": 8, "num_trans_layer": 2}
    own |= {"conditioning_embedding_out_channels": HINTS, "addition_time_embed_dim": config["addition_time_embed_dim"]}
    network = seeded(seed, lambda: ControlNetUnionModel(**({name: config[name] for name in shared} | own)))
    generator = torch.Generator().manual_seed(seed)
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        layer.weight.data *= 2.0
    # As the kinds of hints should show.
    network.spatial_ch_projs.weight.data = torch.randn(network.spatial_ch_projs.weight.shape, generator=generator)
    return network.eval()


def t2i_adapter(model: Model, *, kind: str | None = None, seed: int = 12, channels: int = 3) -> Any:
    from diffusers.models.adapter import T2IAdapter

    larger = model.description.family.name == "sdxl"
    config: dict[str, Any] = {
        "in_channels": channels,
        "channels": [8, 16, 16],
        "num_res_blocks": 2,
        "downscale_factor": 8 if larger else 4,
        "adapter_type": "full_adapter_xl" if larger else "full_adapter",
    }
    if kind == "light_adapter":
        config |= {"channels": [8, 16], "adapter_type": kind, "num_res_blocks": 3}
    return seeded(seed, lambda: T2IAdapter(**config)).eval()


def write_folder(folder: Path, network: Any) -> Path:
    network.save_pretrained(folder)
    return folder


def write_diffusers(path: Path, network: Any, *, dtype: torch.dtype = torch.float32) -> Path:
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def write_ldm(path: Path, network: Any, *, prefix: str = "control_model.", dtype: torch.dtype = torch.float32) -> Path:
    """Write a ControlNet in lllyasviel's format."""

    def theirs(name: str) -> str:
        module = max((ours for ours in LDM if name.startswith(f"{ours}.")), key=len)
        return prefix + LDM[module] + name.removeprefix(module)

    save_file({theirs(name): tensor.to(dtype).contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def write_control_lora(path: Path, network: Any, model: Model, *, rank: int = 4) -> Path:
    """Write a Control-LoRA in Stability AI's format; `network` gets the weights that the file stands for."""
    theirs, ours = model.unet.state_dict(), network.state_dict()
    generator = torch.Generator().manual_seed(16)
    tensors = {"lora_controlnet": torch.tensor([])}
    for name, tensor in ours.items():
        module = max((known for known in LDM if name.startswith(f"{known}.")), key=len)
        stored = LDM[module] + name.removeprefix(module)
        if name not in theirs or tensor.ndim < 2:
            tensors[stored] = tensor.contiguous()
            continue
        up = torch.randn(tensor.shape[0], rank, generator=generator) / rank
        down = torch.randn(rank, tensor[0].numel(), generator=generator) * 0.1
        tensor.copy_(theirs[name] + (up @ down).reshape(tensor.shape))
        tensors[stored.removesuffix("weight") + "up"] = up.reshape(-1, rank, *(1,) * (tensor.ndim - 2))
        tensors[stored.removesuffix("weight") + "down"] = down.reshape(rank, *tensor.shape[1:])
    save_file(tensors, path)
    return path


def write_tencent(path: Path, network: Any) -> Path:
    """Write a T2I-Adapter in TencentARC's format: the blocks of all levels in one list."""
    light = network.config.adapter_type == "light_adapter"

    def theirs(name: str) -> str:
        name = name.removeprefix("adapter.")
        if light:
            return name.replace(".resnets.", ".body.")
        _, level, what, *rest = name.split(".") if name.startswith("body.") else ("", "", "", name)
        if what == "resnets":
            return f"body.{2 * int(level) + int(rest[0])}.{'.'.join(rest[1:])}"
        return f"body.{2 * int(level)}.in_conv.{rest[-1]}" if what == "in_conv" else name

    save_file({theirs(name): tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def write_ip_adapter(path: Path, model: Model, *, kind: str = "base", encoder: Path, seed: int = 13) -> Path:
    """Write an IP-Adapter in its authors' format, with an image encoder beside it."""
    said = json.loads((encoder / "config.json").read_text())
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    context = int(model.description.unet["cross_attention_dim"])
    tensors = {f"image_proj.{name}": tensor for name, tensor in PROJECTIONS[kind](noise, said, context).items()}
    cross = [module for name, module in model.unet.named_modules() if name.endswith(".attn2")]
    for number, attention in enumerate(cross):
        for part in "kv":
            tensors[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = noise(*attention.to_k.weight.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def base(noise: Any, said: Mapping[str, Any], context: int) -> dict[str, Tensor]:
    width = said["projection_dim"]
    return {
        "proj.weight": noise(4 * context, width) * 2,
        "proj.bias": noise(4 * context),
        "norm.weight": 1 + noise(context),
        "norm.bias": noise(context),
    }


def full(noise: Any, said: Mapping[str, Any], context: int) -> dict[str, Tensor]:
    width = said["hidden_size"]
    return {
        "proj.0.weight": noise(width, width),
        "proj.0.bias": noise(width),
        "proj.2.weight": noise(context, width),
        "proj.2.bias": noise(context),
        "proj.3.weight": 1 + noise(context),
        "proj.3.bias": noise(context),
    }


def plus(noise: Any, said: Mapping[str, Any], context: int, *, hidden: int = 32) -> dict[str, Tensor]:
    width, inner = said["hidden_size"], 64
    tensors = {
        "latents": noise(1, 6, hidden) * 4,
        "proj_in.weight": noise(hidden, width),
        "proj_in.bias": noise(hidden),
        "proj_out.weight": noise(context, hidden),
        "proj_out.bias": noise(context),
        "norm_out.weight": 1 + noise(context),
        "norm_out.bias": noise(context),
    }
    for layer in range(4):  # diffusers takes that for granted
        for norm in ("0.norm1", "0.norm2", "1.0"):
            tensors[f"layers.{layer}.{norm}.weight"] = 1 + noise(hidden)
            tensors[f"layers.{layer}.{norm}.bias"] = noise(hidden)
        tensors |= {
            f"layers.{layer}.0.to_q.weight": noise(inner, hidden),
            f"layers.{layer}.0.to_kv.weight": noise(2 * inner, hidden),
            f"layers.{layer}.0.to_out.weight": noise(hidden, inner),
            f"layers.{layer}.1.1.weight": noise(4 * hidden, hidden),
            f"layers.{layer}.1.3.weight": noise(hidden, 4 * hidden),
        }
    return tensors


PROJECTIONS = {"base": base, "full": full, "plus": plus}


def write_encoder(folder: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=20,
    )
    seeded(14, lambda: CLIPVisionModelWithProjection(config)).save_pretrained(folder)
    return folder


def shapes_picture(seed: int = 0, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """A hint like a scribble: a few white shapes on black."""
    dice = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height))
    for _ in range(4):
        x, y = dice.integers(0, [width - 16, height - 16])
        ImageDraw.Draw(image).ellipse((x, y, x + 15, y + 15), outline="white", width=2)
    return image


def colours_picture(seed: int = 0, width: int = 48, height: int = 40) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


PICTURES = {
    HINT: shapes_picture(1),
    OTHER_HINT: shapes_picture(2),
    LOOK: colours_picture(1),
    OTHER_LOOK: colours_picture(2),
}


def control(path: Path, model: Model, **use: Any) -> ActiveControl:
    """Load it for the model; also returns how a spec uses it."""
    about = describe_control(path, model.description, name=path.stem, model_name=model.name)
    net = load_control(about, CPU, model.unet)
    return ActiveControl(net, control_use(path, **use))


def control_use(path: Path, **use: Any) -> PinnedControl:
    return PinnedControl(**({"model": path.stem, "digest": "0" * 64, "image": HINT, "hint": HINT} | use))


def adapters_in(models: Path) -> IpAdapterEffect:
    return IpAdapterEffect(Catalogue(models))


def picture_led(adapters: IpAdapterEffect, model: Model, name: str, pictures: Any = PICTURES, **use: Any) -> Steering:
    """Load an adapter of the folder, with its picture encoded."""
    request = PicturePromptRequest(**({"model": name, "image": LOOK} | use))
    pinned = adapters.pin_one(request, model.description, model_name=model.name)
    spec = spec_for(model).model_copy(update={"picture_prompts": (pinned,)})
    return Steering(pictures=adapters.load(spec, model, pictures).pictures)


def controlled(spec: Any, led: Steering) -> Any:
    return spec.model_copy(
        update={
            "controls": tuple(one.pinned for one in led.controls),
            "picture_prompts": tuple(one.pinned for one in led.pictures),
        }
    )
