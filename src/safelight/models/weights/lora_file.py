"""Read a LoRA file in any dialect, independent of a model.

Every dialect's keys contain the same three things: the network, the layer, and the tensor.

| dialect | a key |
|---|---|
| kohya | `lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight`, `lora_te1_...` |
| kohya, ldm's names | `lora_unet_input_blocks_4_1_proj_in.lora_down.weight` |
| diffusers, peft | `unet.down_blocks.1.attentions.0.proj_in.lora_A.weight`, `text_encoder_2....` |
| ComfyUI | `diffusion_model.double_blocks.0.img_mod.lin.lora_down.weight`, `text_encoders.t5xxl....` |
| OneTrainer | `lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight`, `lora_te2_...` |
| diffusers before 0.20 | `unet....attn1.processor.to_q_lora.down.weight` |
| LyCORIS | kohya's names with `hada_w1_a`, `lokr_w1`, `lora_mid.weight`, `dora_scale`, `diff` |

Names are not translated into one another: `lora_names.py` has the names of each layer of a network in all dialects.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from safelight.errors import CorruptModel
from safelight.models.weights.safetensors_file import read_header

Part = str
"""`unet` (also for a transformer), `text_encoder`, `text_encoder_2`, `text_encoder_3`, or empty if the dialect does not
name it."""
T5: Part = "text_encoder_3"
"""kohya and ComfyUI name it the third text encoder also in Flux, where it is the second."""

PREFIXES: tuple[tuple[str, Part], ...] = (
    ("lora_unet_", "unet"),
    ("unet.", "unet"),
    ("lora_transformer_", "unet"),
    ("transformer.", "unet"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", T5),
    ("lora_te_", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder_3.", T5),
    ("text_encoder.", "text_encoder"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", T5),
    ("base_model.model.", ""),
)
TENSORS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    "dora_scale": "dora_scale",
    "alpha": "alpha",
    "scalar": "scalar",
    "diff": "diff",
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
# Longest first: else `lora.down.weight` would match inside `lora_linear_layer.down.weight`.
KEY = re.compile(rf"(.+?)[._]({'|'.join(re.escape(name) for name in sorted(TENSORS, key=len, reverse=True))})")


@dataclass(frozen=True, slots=True)
class Target:
    """One layer, by its name in the file."""

    part: Part
    name: str


@dataclass(frozen=True, slots=True)
class LoraFile:
    path: Path
    layers: Mapping[Target, Mapping[str, Tensor]]
    """The tensors of each layer, by our names (the values of `TENSORS`)."""
    keys: Mapping[Target, tuple[str, ...]]
    """The file's keys of each layer."""
    unknown_keys: tuple[str, ...]
    """Keys of no known dialect."""
    metadata: Mapping[str, str]

    def scale(self, target: Target) -> float | None:
        """Return alpha / r from peft's metadata, since peft stores no alpha tensors; None if there is no metadata."""
        try:
            record: Any = json.loads(self.metadata.get("lora_adapter_metadata", ""))
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict):
            return None
        parts = (target.part, "transformer") if target.part == "unet" else (target.part,)
        part = next((part for part in parts if f"{part}.lora_alpha" in record), None)
        return None if part is None else peft_scale(record, target, part)


def peft_scale(record: Mapping[str, Any], target: Target, part: Part) -> float:
    def setting(name: str, pattern: str) -> float:
        """Return the layer's own value, by the end of its name, else the default.

        peft treats the names as regular expressions; diffusers writes plain names, and an untrusted pattern could run
        forever.
        """
        patterns: Mapping[str, Any] = record.get(f"{part}.{pattern}") or {}
        own = [value for layer, value in patterns.items() if f".{target.name}".endswith(f".{layer}")]
        return float(own[0] if own else record[f"{part}.{name}"])

    try:
        alpha, rank = setting("lora_alpha", "alpha_pattern"), setting("r", "rank_pattern")
        return alpha / (math.sqrt(rank) if record.get(f"{part}.use_rslora") else rank)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise CorruptModel(
            "lora_adapter_metadata in the file's header: r or lora_alpha is missing or invalid"
        ) from None


def read_lora(path: Path) -> LoraFile:
    """Read a file's tensors, grouped by layer.

    Raises:
        UnsafeFile: a pickle, under any name.
        CorruptModel: damaged, or not a safetensors file.
    """
    header = read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptModel(f"{path} is damaged: {error}") from None
    layers: dict[Target, dict[str, Tensor]] = {}
    keys: dict[Target, list[str]] = {}
    unknown_keys: list[str] = []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None or not tensor.is_floating_point():
            unknown_keys.append(key)
            continue
        target, tensor_name = target_of(match[1]), TENSORS[match[2]]
        layers.setdefault(target, {})[tensor_name] = tensor
        keys.setdefault(target, []).append(key)
    known = {target: tuple(names) for target, names in keys.items()}
    return LoraFile(path, layers, known, tuple(unknown_keys), header.metadata)


def target_of(name: str) -> Target:
    """Parse e.g. `unet.mid_block...attn1.processor.to_q` as the layer `mid_block...attn1.to_q` of the UNet."""
    part = "unet"
    for prefix, prefix_part in PREFIXES:
        if name.startswith(prefix):
            part, name = prefix_part, name.removeprefix(prefix)
            break
    return Target(part, name.replace(".processor.", "."))


def algorithm_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the algorithm, from one layer's tensors (any shape)."""
    decomposed = "DoRA " if tensors.keys() & {"magnitude", "dora_scale"} else ""
    for prefix, name in (("hada", "LoHa"), ("lokr", "LoKr"), ("diff", "full")):
        if any(tensor.startswith(prefix) for tensor in tensors):
            return decomposed + name
    down = tensors.get("down")
    return decomposed + ("LoCon" if down is not None and down.ndim == 4 and down.shape[-1] > 1 else "LoRA")


def rank_of(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the rank r from one layer's tensors (any shape); None if the algorithm has no rank."""
    for name in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if name in tensors and tensors[name].ndim:
            return int(tensors[name].shape[0])
    return None


def scalar_value(tensor: Tensor) -> float:
    """Return the value of a tensor with one element (a scalar).

    Raises:
        CorruptModel: it is not a single finite number.
    """
    if tensor.numel() != 1 or not torch.isfinite(tensor).all():
        raise CorruptModel(f"alpha and scalar are single finite numbers, not {tuple(tensor.shape)}")
    return float(tensor)
