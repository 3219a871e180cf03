"""Small files with the names and shapes of real ones, told apart by their numbers."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MID = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def write_lora(path: Path, seed: int = 1, *, width: int = 768, metadata: dict[str, str] | None = None) -> Path:
    """One layer of a LoRA for Stable Diffusion 1, or 2048 wide for SDXL."""
    dice = np.random.default_rng(seed)
    down, up = dice.normal(size=(2, width)).astype(np.float16), dice.normal(size=(16, 2)).astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{MID}.lora_down.weight": down, f"{MID}.lora_up.weight": up}, path, metadata=metadata)
    return path


def write_vae(path: Path, seed: int = 1) -> Path:
    dice = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
    save_file({name: dice.normal(size=(4, 4)).astype(np.float16) for name in names}, path)
    return path


def write_ip_adapter(path: Path, seed: int = 1) -> Path:
    dice = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight", "ip_adapter.1.to_v_ip.weight")
    save_file({name: dice.normal(size=(4, 768)).astype(np.float16) for name in names}, path)
    return path
