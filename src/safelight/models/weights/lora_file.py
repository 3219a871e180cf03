"""A LoRA file, read in whichever dialect it is written, before any model is asked.

Every dialect says the same three things in another order: which network, which layer of it, and which tensor.

| dialect | a key |
|---|---|
| kohya | `lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight`, `lora_te1_...` |
| kohya, ldm's names | `lora_unet_input_blocks_4_1_proj_in.lora_down.weight` |
| diffusers, peft | `unet.down_blocks.1.attentions.0.proj_in.lora_A.weight`, `text_encoder_2....` |
| ComfyUI | `diffusion_model.double_blocks.0.img_mod.lin.lora_down.weight`, `text_encoders.t5xxl....` |
| OneTrainer | `lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight`, `lora_te2_...` |
| diffusers before 0.20 | `unet....attn1.processor.to_q_lora.down.weight` |
| LyCORIS | kohya's names with `hada_w1_a`, `lokr_w1`, `lora_mid.weight`, `dora_scale`, `diff` |

Names are not translated into one another: `lora_names.py` knows what each layer of a network is called in all of them.
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
"""`unet` (or the transformer in its place), `text_encoder`, `text_encoder_2`, `text_encoder_3`, or `` where the dialect
does not say."""
T5: Part = "text_encoder_3"
"""kohya and ComfyUI call it the third where it is the second too, in Flux."""

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
# Longest first, or `lora.down.weight` would be found inside `lora_linear_layer.down.weight`.
KEY = re.compile(rf"(.+?)[._]({'|'.join(re.escape(name) for name in sorted(TENSORS, key=len, reverse=True))})")


@dataclass(frozen=True, slots=True)
class Target:
    """One layer, as the file names it."""

    part: Part
    name: str


@dataclass(frozen=True, slots=True)
class LoraFile:
    path: Path
    layers: Mapping[Target, Mapping[str, Tensor]]
    """What the file holds for each layer, by our names for it (the values of `TENSORS`)."""
    keys: Mapping[Target, tuple[str, ...]]
    """The keys these came from."""
    strange: tuple[str, ...]
    """Keys in no dialect we know."""
    metadata: Mapping[str, str]

    def scale(self, target: Target) -> float | None:
        """alpha / r by peft's record, which has no alpha in its tensors; None where there is no record."""
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
        """The layer's own value, by the end of its name, else everybody's.

        peft reads the names as patterns; diffusers writes plain ones, and a stranger's pattern could take for ever.
        """
        patterns: Mapping[str, Any] = record.get(f"{part}.{pattern}") or {}
        own = [value for layer, value in patterns.items() if f".{target.name}".endswith(f".{layer}")]
        return float(own[0] if own else record[f"{part}.{name}"])

    try:
        alpha, rank = setting("lora_alpha", "alpha_pattern"), setting("r", "rank_pattern")
        return alpha / (math.sqrt(rank) if record.get(f"{part}.use_rslora") else rank)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise CorruptModel("lora_adapter_metadata in the file's header lacks r or lora_alpha, or garbles it") from None


def read_lora(path: Path) -> LoraFile:
    """Every tensor of the file under the layer it is for.

    Raises:
        UnsafeFile: a pickle, whatever its name says.
        CorruptModel: damaged, or no safetensors file.
    """
    header = read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptModel(f"{path} is damaged: {error}") from None
    layers: dict[Target, dict[str, Tensor]] = {}
    keys: dict[Target, list[str]] = {}
    strange: list[str] = []
    for key, tensor in tensors.items():
        found = KEY.fullmatch(key)
        if found is None or not tensor.is_floating_point():
            strange.append(key)
            continue
        target, tensor_name = target_of(found[1]), TENSORS[found[2]]
        layers.setdefault(target, {})[tensor_name] = tensor
        keys.setdefault(target, []).append(key)
    known = {target: tuple(names) for target, names in keys.items()}
    return LoraFile(path, layers, known, tuple(strange), header.metadata)


def target_of(name: str) -> Target:
    """`unet.mid_block...attn1.processor.to_q` is the layer `mid_block...attn1.to_q` of the UNet."""
    part = "unet"
    for prefix, named in PREFIXES:
        if name.startswith(prefix):
            part, name = named, name.removeprefix(prefix)
            break
    return Target(part, name.replace(".processor.", "."))


def algorithm_of(tensors: Mapping[str, Tensor]) -> str:
    """By the name its authors gave it."""
    decomposed = "DoRA " if tensors.keys() & {"magnitude", "dora_scale"} else ""
    for prefix, name in (("hada", "LoHa"), ("lokr", "LoKr"), ("diff", "full")):
        if any(tensor.startswith(prefix) for tensor in tensors):
            return decomposed + name
    down = tensors.get("down")
    return decomposed + ("LoCon" if down is not None and down.ndim == 4 and down.shape[-1] > 1 else "LoRA")


def rank_of(tensors: Mapping[str, Tensor]) -> int | None:
    """r, where the algorithm has one."""
    for name in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if name in tensors and tensors[name].ndim:
            return int(tensors[name].shape[0])
    return None


def number(tensor: Tensor) -> float:
    """A value kept as a tensor.

    Raises:
        CorruptModel: it is not one number.
    """
    if tensor.numel() != 1 or not torch.isfinite(tensor).all():
        raise CorruptModel(f"alpha and scalar are single finite numbers, not {tuple(tensor.shape)}")
    return float(tensor)
