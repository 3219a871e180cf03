"""FaceID adapters and a face model for a tiny model, random, in the files' own formats.

The names of the authors' code are written out here, from that code and not from our tables, so that a mistake in a
table shows.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.control_files import colours_picture, plus
from torch import Tensor

from safelight.models.networks.load import Model

RANK, TOKENS = 3, 4


def face(seed: int = 1) -> list[float]:
    """An embedding, of length 1 as ArcFace's."""
    numbers = np.random.default_rng(seed).normal(size=512).astype(np.float32)
    return (numbers / np.linalg.norm(numbers)).tolist()


def face_picture(side: int = 112) -> Image.Image:
    return colours_picture(3, side, side)


def write_faceid(
    path: Path, model: Model, *, encoder: Path | None = None, tokens: int = TOKENS, lora: bool = True, seed: int = 21
) -> Path:
    """FaceID; with the folder of an image encoder, FaceID Plus."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    context = int(model.description.unet["cross_attention_dim"])
    projection = {
        "proj.0.weight": noise(2 * 512, 512) * 20,
        "proj.0.bias": noise(2 * 512),
        "proj.2.weight": noise(tokens * context, 2 * 512),
        "proj.2.bias": noise(tokens * context),
        "norm.weight": 1 + noise(context),
        "norm.bias": noise(context),
    }
    if encoder is not None:
        said = json.loads((encoder / "config.json").read_text())
        resampler = plus(noise, said, context, hidden=context)
        del resampler["latents"]
        projection |= {f"perceiver_resampler.{name}": tensor for name, tensor in resampler.items()}
    tensors = {f"image_proj.{name}": tensor for name, tensor in projection.items()}
    attentions = [module for name, module in model.unet.named_modules() if name.endswith((".attn1", ".attn2"))]
    for number, attention in enumerate(attentions):
        crosses = number % 2 == 1
        if crosses:
            for part in "kv":
                tensors[f"ip_adapter.{number}.to_{part}_ip.weight"] = noise(*attention.to_k.weight.shape)
        layers: dict[str, Any] = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v}
        for part, layer in (layers | {"out": attention.to_out[0]}).items() if lora else ():
            out, into = layer.weight.shape
            tensors[f"ip_adapter.{number}.to_{part}_lora.down.weight"] = noise(RANK, into)
            tensors[f"ip_adapter.{number}.to_{part}_lora.up.weight"] = noise(out, RANK) * 0.3
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def write_face_model(path: Path, *, width: int = 512, seed: int = 22) -> Path:
    """As recognition networks are exported: (n, 3, 112, 112) to (n, 512); here a pooling and a linear layer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = face_model_weights(width=width, seed=seed)
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["input.1"], ["small"], kernel_shape=[28, 28], strides=[28, 28]),
            helper.make_node("Flatten", ["small"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["683"]),
        ],
        "recognition",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["None", 3, 112, 112])],
        [helper.make_tensor_value_info("683", TensorProto.FLOAT, ["None", width])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def face_model_weights(*, width: int = 512, seed: int = 22) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.random.default_rng(seed).normal(size=(3 * 4 * 4, width)).astype(np.float32)


def seen_in(image: Image.Image) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """What that face model says of an aligned face of 112 pixels, worked out by hand."""
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    pooled = pixels.reshape(3, 4, 28, 4, 28).mean(axis=(2, 4))
    said = pooled.reshape(-1) @ face_model_weights()
    return said / np.linalg.norm(said)
