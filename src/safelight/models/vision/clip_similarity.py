"""Similarity by a user's CLIP: the folder of a transformers `CLIPModel`.

The embedded model's image encoder (`similarity.py`) was trained on drawings of everyday things; for photographs, faces
or diagrams a larger CLIP is better. It must be a local folder; nothing is downloaded from the hub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight.errors import CorruptModel
from safelight.models.vision.similarity import BATCH, as_pixels

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Per channel, of the images CLIP was trained on (OpenAI's preprocessor, and most later ones)."""


@dataclass(frozen=True, slots=True)
class ClipSimilarity:
    network: Any
    tokenizer: Any

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return unit vectors, (n, dim)."""
        side = int(self.network.config.vision_config.image_size)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
        parts: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            pixels = (as_pixels(images[start : start + BATCH], side) / 2 + 0.5 - mean) / std
            pooled = self.network.vision_model(pixel_values=pixels).pooler_output
            parts.append(self.network.visual_projection(pooled))
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors, (n, dim)."""
        parts: list[Tensor] = []
        for start in range(0, len(prompts), BATCH):
            tokens = self.tokenizer(
                list(prompts[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            parts.append(self.network.text_projection(self.network.text_model(**tokens).pooler_output))
        return F.normalize(torch.cat(parts), dim=-1)


def open_clip(folder: Path) -> ClipSimilarity:
    """
    Raises:
        CorruptModel: the folder has no CLIPModel with safetensors weights and its tokenizer.
    """
    from transformers import CLIPModel, CLIPTokenizer

    try:
        opened: Any = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        network, found = opened
        if missing := sorted(found["missing_keys"]):  # transformers would initialise these at random
            raise ValueError(f"its weights lack {missing[0]}")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CorruptModel(f"{folder} is no CLIP model of transformers: {str(error).splitlines()[0]}") from None
    return ClipSimilarity(network.eval(), tokenizer)
