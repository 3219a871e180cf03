"""A LoRA inside a model, by peft: insert it, collect its weights, and write them in the two common formats.

| file | keys | read by |
|---|---|---|
| kohya | `lora_unet_..._to_q.lora_down.weight`, alpha as a tensor | AUTOMATIC1111, ComfyUI, safelight, diffusers |
| diffusers | `unet....to_q.lora_A.weight`, alpha in the header | diffusers, peft, safelight |
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from safelight.errors import StorageFailed
from safelight.lifecycle.training.recipe import Layers, Train
from safelight.models.hooks.lora_names import flat, layers_of
from safelight.models.networks.load import Model
from safelight.models.weights.tensor_file import write_tensors

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
KOHYA_TEXT: Mapping[int, tuple[str, ...]] = {1: ("lora_te_",), 2: ("lora_te1_", "lora_te2_")}
"""kohya's prefix of each text encoder, by the number of text encoders."""


def networks_of(model: Model, train: Train) -> dict[str, nn.Module]:
    """The networks to train, by part."""
    encoders = zip(model.description.family.text_encoders, model.text_encoders, strict=True)
    text: dict[str, nn.Module] = {part: encoder.network for part, encoder in encoders}
    match train:
        case "unet":
            return {"unet": model.unet}
        case "text":
            return text
        case "both":
            return {"unet": model.unet, **text}


def targets(network: nn.Module, layers: Layers) -> list[str]:
    """The paths of the layers to train."""
    is_unet = hasattr(network, "down_blocks")
    found: list[str] = []
    for path in layers_of(network):
        if layers == "attention":
            wanted = path.endswith(ATTENTION if is_unet else TEXT_ATTENTION) and "add_embedding" not in path
        elif layers == "transformer":
            wanted = ".attentions." in path if is_unet else ".layers." in path
        else:
            wanted = ".attentions." in path or ".resnets." in path if is_unet else ".layers." in path
        if wanted:
            found.append(path)
    return found


def add_lora(
    networks: Mapping[str, nn.Module], *, rank: int, alpha: float, layers: Layers, seed: int
) -> dict[str, dict[str, nn.Parameter]]:
    """Insert a LoRA into each network; returns its parameters, in float32, by part and name."""
    added: dict[str, dict[str, nn.Parameter]] = {}
    for part, network in networks.items():
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  a float will do
            init_lora_weights="gaussian",
            target_modules=targets(network, layers),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, network)
        added[part] = {name: param for name, param in network.named_parameters() if "lora_" in name}
        for param in added[part].values():
            param.data = param.data.float()
            param.requires_grad_(True)
    return added


def lora_tensors(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The trained weights by layer path: down (r, in) or (r, in, kh, kw), and up (out, r) or (out, r, 1, 1)."""
    layers: dict[str, Any] = {path: layer for path, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    return {
        path: (layer.lora_A["default"].weight.detach().cpu(), layer.lora_B["default"].weight.detach().cpu())
        for path, layer in layers.items()
    }


def write_kohya(path: Path, networks: Mapping[str, nn.Module], *, alpha: float, metadata: Mapping[str, str]) -> None:
    file: dict[str, Tensor] = {}
    prefixes = {"unet": "lora_unet_"}
    texts = [part for part in networks if part != "unet"]
    has_two = "text_encoder_2" in networks
    prefixes |= dict(zip(texts, KOHYA_TEXT[2 if has_two else 1], strict=False))
    for part, network in networks.items():
        for name, (down, up) in lora_tensors(network).items():
            whole = name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
            key = f"{prefixes[part]}{flat(whole)}"
            file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            file[f"{key}.alpha"] = torch.tensor(float(alpha))
    save(path, file, metadata)


def write_diffusers(
    path: Path, networks: Mapping[str, nn.Module], *, rank: int, alpha: float, metadata: Mapping[str, str]
) -> None:
    file: dict[str, Tensor] = {}
    record: dict[str, Any] = {}
    for part, network in networks.items():
        found = lora_tensors(network)
        for name, (down, up) in found.items():
            file |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
        record |= {f"{part}.r": rank, f"{part}.lora_alpha": alpha, f"{part}.target_modules": sorted(found)}
    save(path, file, {**metadata, "format": "pt", "lora_adapter_metadata": json.dumps(record, sort_keys=True)})


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any shape atomically, because a running server may read the file at any time.

    The same tensors give the same bytes.
    """
    plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    try:
        write_tensors(path, plan, tensors.items(), metadata=metadata)
    except StorageFailed as error:
        raise StorageFailed(
            f"{error}; free some space and run the command again; the training itself is finished"
        ) from None
