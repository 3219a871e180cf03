"""LoRA files with random numbers, under the key names and in the shapes that trainers write."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from safelight.models.adapters.lora import load_lora
from safelight.models.adapters.lora_effect import ActiveLora
from safelight.models.checkpoints.digest import file_sum
from safelight.models.networks.load import Model
from safelight.spec.effects import PinnedLora

Tensors = dict[str, Tensor]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm1.linear", "proj_mlp")
"""Layers of transformers: those that read the prompt, and those whose input is one vector per row."""
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1", "mlp.fc2")
OF_T5 = (*(f"SelfAttention.{name}" for name in "qkvo"), "wi_0", "wi_1", "wo")
KOHYA_PREFIXES = {1: ("lora_te_",), 2: ("lora_te1_", "lora_te2_")}
STRENGTH = 0.5
"""Size of the difference relative to the weights: enough to change the picture, too little to turn it into noise."""


def layers(network: nn.Module, endings: Iterable[str]) -> dict[str, Any]:
    """The linear and convolution layers whose paths end with one of these."""
    kinds, ends = (nn.Linear, nn.Conv2d), tuple(endings)
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, kinds) and path.endswith(ends)}


class Dice:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def roll(self, *shape: int, size: float = 1.0) -> Tensor:
        return size * torch.randn(*shape, generator=self.generator)


def lora(layer: Any, dice: Dice, *, rank: int = 4, alpha: float | None = 2.0) -> Tensors:
    """kohya's: (r, in[, kh, kw]) and (out, r[, 1, 1])."""
    out, *into = layer.weight.shape
    size = STRENGTH * float(layer.weight.std()) * torch.tensor(into).prod().item() ** 0.5
    ones = (1, 1) if len(into) == 3 else ()
    tensors = {
        "lora_down.weight": dice.roll(rank, *into, size=torch.tensor(into).prod().item() ** -0.5),
        "lora_up.weight": dice.roll(out, rank, *ones, size=size / rank**0.5),
    }
    return tensors if alpha is None else tensors | {"alpha": torch.tensor(alpha)}


def locon_cp(layer: Any, dice: Dice, *, rank: int = 4) -> Tensors:
    """LyCORIS's CP decomposition: two 1x1 convolutions around a small one."""
    out, into, *kernel = layer.weight.shape
    if not kernel:
        return lora(layer, dice, rank=rank)
    return {
        "lora_down.weight": dice.roll(rank, into, 1, 1, size=into**-0.5),
        "lora_mid.weight": dice.roll(rank, rank, *kernel, size=rank**-0.5),
        "lora_up.weight": dice.roll(out, rank, 1, 1, size=0.2 * rank**-0.5),
        "alpha": torch.tensor(rank / 2),
    }


def loha(layer: Any, dice: Dice, *, rank: int = 2, cp: bool = False) -> Tensors:
    out, into, *kernel = layer.weight.shape
    size = (STRENGTH * float(layer.weight.std())) ** 0.5 / rank**0.5
    tensors: Tensors = {"alpha": torch.tensor(rank / 1.5)}
    for i in (1, 2):
        if cp and kernel and kernel != [1, 1]:
            tensors[f"hada_t{i}"] = dice.roll(rank, rank, *kernel, size=rank**-0.5)
            tensors[f"hada_w{i}_a"] = dice.roll(rank, out, size=size)
            tensors[f"hada_w{i}_b"] = dice.roll(rank, into)
        else:
            tensors[f"hada_w{i}_a"] = dice.roll(out, rank, size=size)
            tensors[f"hada_w{i}_b"] = dice.roll(rank, into * (kernel[0] * kernel[1] if kernel else 1))
    return tensors


def lokr(layer: Any, dice: Dice, *, rank: int | None = None, factor: int = 4, cp: bool = False) -> Tensors:
    """LoKr: full matrices, or the second as a product; `factor` divides the shapes where possible."""
    out, into, *kernel = layer.weight.shape
    a, b = (factor if side % factor == 0 else 1 for side in (out, into))
    c, d, size = out // a, into // b, STRENGTH * float(layer.weight.std())
    tensors: Tensors = {"lokr_w1": dice.roll(a, b), "alpha": torch.tensor(1.0)}
    if rank is None:
        return tensors | {"lokr_w2": dice.roll(c, d, *kernel, size=size)}
    tensors["alpha"] = torch.tensor(rank / 2)
    if cp and kernel and kernel != [1, 1]:
        return tensors | {
            "lokr_t2": dice.roll(rank, rank, *kernel, size=size),
            "lokr_w2_a": dice.roll(rank, c, size=rank**-0.5),
            "lokr_w2_b": dice.roll(rank, d),
        }
    flat = d * (kernel[0] * kernel[1] if kernel else 1)
    return tensors | {"lokr_w2_a": dice.roll(c, rank, size=size), "lokr_w2_b": dice.roll(rank, flat)}


def dora(layer: Any, dice: Dice, *, rank: int = 4, by_input: bool = False) -> Tensors:
    """DoRA's magnitudes: the norms of W's rows, or columns, slightly changed."""
    weight, ones = layer.weight, [1] * (layer.weight.ndim - 2)
    if by_input:
        lengths = weight.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *ones)
    else:
        lengths = weight.flatten(1).norm(dim=1).view(-1, 1, *ones)
    return lora(layer, dice, rank=rank) | {"dora_scale": lengths * (1 + 0.2 * dice.roll(*lengths.shape))}


Make = Callable[[Any, Dice], Tensors]


def write_kohya(
    path: Path,
    model: Model,
    make: Make = lora,
    *,
    endings: Iterable[str] = LINEAR,
    text: bool = True,
    rename: Callable[[str], str] = lambda name: name,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Key names of kohya's trainer and LyCORIS."""
    dice = Dice(seed)
    file = {
        f"lora_unet_{rename(name).replace('.', '_')}.{tensor}": value
        for name, layer in layers(model.unet, endings).items()
        for tensor, value in make(layer, dice).items()
    }
    for prefix, encoder in zip(KOHYA_PREFIXES[len(model.text_encoders)], model.text_encoders, strict=True):
        for name, layer in layers(encoder.network, TEXT if text else ()).items():
            name = f"text_model.{name.removeprefix('text_model.')}".replace(".", "_")
            file |= {f"{prefix}{name}.{tensor}": value for tensor, value in make(layer, dice).items()}
    return write(path, file, metadata)


def write_peft(
    path: Path, model: Model, *, alpha: int = 2, rank: int = 4, decomposed: bool = False, text: bool = True
) -> Path:
    """Keys as diffusers' `save_lora_weights` writes a LoRA of peft; alpha is in the header."""
    dice, file, record = Dice(1), dict[str, Tensor](), dict[str, Any]()
    networks: dict[str, Any] = {model.description.family.network: model.unet}
    if text:
        networks |= zip(("text_encoder", "text_encoder_2"), (e.network for e in model.text_encoders), strict=False)
    for part, network in networks.items():
        endings = {"unet": (*LINEAR, *CONVOLUTIONS), "transformer": (*LINEAR, *ADDED)}.get(part, TEXT)
        for name, layer in layers(network, endings).items():
            tensors = dora(layer, dice, rank=rank) if decomposed else lora(layer, dice, rank=rank)
            file[f"{part}.{name}.lora_A.weight"] = tensors["lora_down.weight"]
            file[f"{part}.{name}.lora_B.weight"] = tensors["lora_up.weight"]
            if decomposed:
                lengths = tensors["dora_scale"]
                file[f"{part}.{name}.lora_magnitude_vector"] = (
                    lengths.flatten() if lengths.ndim == 2 else lengths.view(1, -1, 1, 1)
                )
        ends = [e.removesuffix(".0.proj") for e in endings]
        record |= {f"{part}.r": rank, f"{part}.lora_alpha": alpha, f"{part}.target_modules": ends}
        record |= {f"{part}.use_dora": decomposed}
    return write(path, file, {"format": "pt", "lora_adapter_metadata": json.dumps(record)})


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, dict(metadata or {}))
    return path


def active(path: Path, model: Model, weight: float = 1.0, **use: Any) -> ActiveLora:
    """The file, loaded for the model, as a spec would have it."""
    digest = file_sum(path)
    spec = PinnedLora(name=path.stem, digest=digest, weight=weight, **use)
    return ActiveLora(load_lora(path, model, name=path.stem, digest=digest), spec)
