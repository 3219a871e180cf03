"""Similarity of images and prompts: a CLIP-style image encoder and the text encoder that it was paired with.

    pictures -> image encoder -> unit vectors \\
                                                dot products
    prompts -> text encoder -> text head -> unit vectors /

A model folder may hold such a pair: `image_encoder/` beside the text encoder of its pipeline. The embedded model does,
so prompt-image similarity, image similarity and search work offline; it was trained on drawings of everyday things.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from safelight.errors import CorruptModel
from safelight.models.checkpoints.catalogue import MINI
from safelight.models.checkpoints.digest import file_sum

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

FOLDER = "image_encoder"
WEIGHTS, TEXT_HEAD, PAIR = "model.safetensors", "text_head.safetensors", "pair.json"
BATCH = 64


class TextHead(nn.Module):
    """Maps pooled text states (n, 2 width) to the image embedding space (n, dim)."""

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.inner = nn.Linear(2 * width, 2 * width)
        self.outer = nn.Linear(2 * width, projection)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(self.norm(pooled))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """An image encoder, a text encoder, and the head that projects text to the image space."""

    vision: "CLIPVisionModelWithProjection"
    text_encoder: "CLIPTextModel"
    tokenizer: "CLIPTokenizer"
    text_head: TextHead
    metrics: dict[str, float]
    """Retrieval on held-out images, measured in training."""

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return unit vectors, (n, dim)."""
        parts = (self.vision(pixels).image_embeds for pixels in self.batches(images))
        return F.normalize(torch.cat(list(parts)), dim=-1)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors, (n, dim); prompts are truncated to the text encoder's length."""
        parts = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
        pooled = torch.cat([pool_text(self.text_encoder, self.tokenizer, part) for part in parts])
        return F.normalize(self.text_head(pooled), dim=-1)

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (n, width), before the projection to the space shared with prompts: for kernel distances."""
        parts = (self.vision.vision_model(pixels).pooler_output for pixels in self.batches(images))
        return torch.cat(list(parts))

    def batches(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Return the images as (n, 3, side, side) in batches."""
        side = int(self.vision.config.image_size)  # pyright: ignore[reportArgumentType]
        return [as_pixels(images[i : i + BATCH], side) for i in range(0, len(images), BATCH)]


@torch.no_grad()
def pool_text(network: "CLIPTextModel", tokenizer: "CLIPTokenizer", prompts: Sequence[str]) -> Tensor:
    """Return (n, 2 width): the mean of a prompt's token states, and the state of its end token."""
    tokens = tokenizer(list(prompts), padding="longest", truncation=True, return_tensors="pt")
    states = network(tokens.input_ids).last_hidden_state
    # The end token is also the padding; the first one belongs to the prompt.
    ends = (tokens.input_ids == tokenizer.eos_token_id).int().argmax(dim=1)
    is_content = (torch.arange(states.shape[1]) <= ends[:, None]).unsqueeze(-1).float()
    mean = (states * is_content).sum(dim=1) / is_content.sum(dim=1)
    return torch.cat([mean, states[torch.arange(len(ends)), ends]], dim=-1)


def as_pixels(images: Sequence[Image.Image], side: int) -> Tensor:
    """Return (n, 3, side, side) in [-1, 1]: centre-cropped and downscaled; transparent areas become white."""
    small = [ImageOps.fit(opaque(image), (side, side), Image.Resampling.BOX) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1)


def opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


@cache
def open_similarity(model: Path = MINI) -> Similarity:
    """Open the pair in a model folder; cached for the process.

    Raises:
        CorruptModel: the pair is missing or damaged, or the text encoder is not the one it was paired with.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig
    from transformers import CLIPVisionModelWithProjection as Vision

    folder, text = model / FOLDER, model / "text_encoder"
    try:
        pair = read_json(folder / PAIR)
        if not is_paired_with(pair, model):
            raise CorruptModel(f"{folder} was trained for another text encoder: {HOW_TO_PAIR}")
        vision = with_weights(Vision(CLIPVisionConfig(**read_json(folder / "config.json"))), folder / WEIGHTS)
        text_encoder = with_weights(CLIPTextModel(CLIPTextConfig(**read_json(text / "config.json"))), text / WEIGHTS)
        width = int(text_encoder.config.hidden_size)
        head = with_weights(TextHead(width, int(vision.config.projection_dim)), folder / TEXT_HEAD)
        tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    except FileNotFoundError as error:
        raise CorruptModel(f"{model} has no image encoder ({error.filename} is missing): {HOW_TO_PAIR}") from None
    except (ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise CorruptModel(f"{folder} is not an image encoder of safelight: {error}") from None
    return Similarity(
        vision=vision, text_encoder=text_encoder, tokenizer=tokenizer, text_head=head, metrics=pair["metrics"]
    )


def is_paired_with(pair: dict[str, Any], model: Path) -> bool:
    """Return whether an image encoder's `pair.json` names the model folder's text encoder."""
    return pair["text_encoder"] == file_sum(model / "text_encoder" / WEIGHTS)


HOW_TO_PAIR = "`safelight train scratch image-encoder --folder FOLDER` makes one"


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def with_weights(network: Any, weights: Path) -> Any:
    """Load a file's weights into the network, in float32, for inference."""
    tensors = {name: each.float() for name, each in load_file(weights).items()}
    network.load_state_dict(tensors)
    return network.requires_grad_(False).eval()
