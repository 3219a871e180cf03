"""Depth estimation by a DPT or Depth Anything network from a transformers folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.models.checkpoints.families import read_config
from safelight.models.networks.networks import IMPORTING
from safelight.models.networks.placement import Placement
from safelight.models.weights.safetensors_file import TEXT_ENCODER, weight_files

CLASSES = {"dpt": "DPTForDepthEstimation", "depth_anything": "DepthAnythingForDepthEstimation"}
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class DepthModel:
    network: Any
    placement: Placement
    size: tuple[int, int]
    """Width and height of the network's input."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.inference_mode()
    def read(self, image: Image.Image) -> Image.Image:
        """Return a depth map of the image's size, from black for the farthest to white for the nearest."""
        small = image.convert("RGB").resize(self.size, Image.Resampling.BICUBIC)
        levels = (np.asarray(small, dtype=np.float32) / 255 - np.array(self.mean)) / np.array(self.std)
        pixels = (
            torch.from_numpy(levels.astype(np.float32))
            .permute(2, 0, 1)[None]
            .to(self.placement.device, self.placement.dtype)
        )
        nearness = self.network(pixels).predicted_depth[:, None].float()
        resized = torch.nn.functional.interpolate(nearness, size=image.size[::-1], mode="bicubic")[0, 0]
        lowest, highest = resized.min(), resized.max()
        grey = (resized - lowest) / (highest - lowest).clamp(min=1e-6) * 255
        return Image.fromarray(grey.round().to(torch.uint8).cpu().numpy()).convert("RGB")


def load_depth(folder: Path, placement: Placement) -> DepthModel:
    """
    Raises:
        UnsupportedOption: the folder holds another kind of network.
        UnsafeFile, CorruptModel: its weights are a pickle, missing or damaged.
    """
    config = read_config(folder / "config.json")
    kind = CLASSES.get(str(config.get("model_type")))
    if kind is None:
        raise UnsupportedOption(
            "preprocessor", f"{folder} is a {config.get('model_type')}; supported: {', '.join(CLASSES)}"
        )
    weight_files(folder, TEXT_ENCODER)
    preprocessor = read_config(file) if (file := folder / "preprocessor_config.json").is_file() else {}
    try:
        with IMPORTING:
            import transformers

            network: Any = getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=placement.dtype
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CorruptModel(f"{folder} cannot be read as a {kind}: {error}") from None
    backbone = config.get("backbone_config") or config
    side = int(backbone.get("image_size") or config.get("image_size") or 384)
    input_size = preprocessor.get("size") or {}
    size = int(input_size.get("width", side)), int(input_size.get("height", side))
    network.requires_grad_(False).eval().to(placement.device)
    return DepthModel(
        network, placement, size, tuple(preprocessor.get("image_mean", MEAN)), tuple(preprocessor.get("image_std", STD))
    )
