"""CLIP image embeddings, the conditioning of a variation model.

    image -> resized, centre-cropped, normalised -> CLIP's image encoder -> one vector

Preprocessing follows CLIP's own processor, with the mean and standard deviation that the checkpoint gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.errors import CorruptModel

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Per channel, of the images CLIP was trained on."""


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    network: Any
    """A CLIPVisionModelWithProjection."""
    side: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @classmethod
    def from_config(cls, network: Any, preprocessor: Mapping[str, Any]) -> "ImageEncoder":
        """
        Raises:
            CorruptModel: the preprocessor's configuration is invalid.
        """
        try:
            mean, std = (
                tuple(map(float, preprocessor.get(name, default)))
                for name, default in (("image_mean", MEAN), ("image_std", STD))
            )
            if len(mean) != len(std) != 3 or 0 in std:
                raise ValueError("image_mean and image_std have three numbers each")
        except (TypeError, ValueError) as error:
            raise CorruptModel(f"preprocessor_config.json: {error}") from None
        return cls(network, int(network.config.image_size), mean, std)

    @torch.no_grad()
    def embed(self, image: Image.Image) -> Tensor:
        """Return the image embedding, (dim,) in float32, on the network's device."""
        pixels = self.preprocess(image).to(self.network.device, self.network.dtype)
        return self.network(pixels).image_embeds[0].float()

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return the network's input, (1, 3, side, side), normalised."""
        return to_clip(image, self.side, mean=self.mean, std=self.std)


def to_clip(image: Image.Image, side: int, *, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Return (1, 3, side, side), normalised: the shorter side is resized to `side`, the longer one centre-cropped."""
    shorter = min(image.size)
    width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
    small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    levels = np.asarray(small.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    normal = (levels - np.array(mean, dtype=np.float32)) / np.array(std, dtype=np.float32)
    return torch.from_numpy(normal).permute(2, 0, 1)[None].contiguous()
