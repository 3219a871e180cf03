"""Read and write the image encoder in a model folder, and enter it in the model's index."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionModelWithProjection

from safelight.errors import InvalidRequest
from safelight.models.vision.similarity import FOLDER, PAIR, TEXT_HEAD, WEIGHTS, TextHead, is_paired_with, read_json

PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "resample": 4,  # averages over boxes
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""The image encoder's preprocessing, as transformers writes it."""


def load_vision(vision: CLIPVisionModelWithProjection, model: Path) -> None:
    """Load the weights of a model folder's image encoder into `vision`.

    Raises:
        InvalidRequest: the folder has none, or one of another shape.
    """
    try:
        vision.load_state_dict({name: each.float() for name, each in load_file(model / FOLDER / WEIGHTS).items()})
    except (OSError, RuntimeError) as error:
        raise InvalidRequest(f"{model} has no image encoder to start from: {str(error)[:200]}") from None


def write_pair(
    model: Path, vision: CLIPVisionModelWithProjection, head: TextHead, metrics: dict[str, float], *, text_encoder: str
) -> None:
    """Replace the model's image encoder by this one, in fp16; `text_encoder` is the sha256 of its text encoder."""
    partial, target = model / (FOLDER + ".partial"), model / FOLDER
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = vision.config.to_diff_dict() | {"architectures": ["CLIPVisionModelWithProjection"], "dtype": "float32"}
    config.pop("_name_or_path", None)
    size = {"size": {"shortest_edge": vision.config.image_size}}
    crop = {"crop_size": {"height": vision.config.image_size, "width": vision.config.image_size}}
    write(partial / "config.json", config)
    write(partial / "preprocessor_config.json", PREPROCESSING | size | crop)
    write(partial / PAIR, {"text_encoder": text_encoder, "metrics": metrics})
    save_half(vision, partial / WEIGHTS)
    save_half(head, partial / TEXT_HEAD)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    name_image_encoder(model)


def is_paired(model: Path) -> bool:
    """Whether the folder has an image encoder that was trained for its text encoder."""
    pair = model / FOLDER / PAIR
    return pair.exists() and is_paired_with(read_json(pair), model)


def name_image_encoder(model: Path) -> None:
    """Enter the image encoder in the model's index."""
    index = model / "model_index.json"
    parts = json.loads(index.read_text("utf-8")) | {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    write(index, dict(sorted(parts.items())))


def save_half(network: nn.Module, path: Path) -> None:
    weights = {
        name: each.half().contiguous() if each.is_floating_point() else each
        for name, each in network.state_dict().items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
