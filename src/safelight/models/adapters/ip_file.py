"""What kind of IP-Adapter a file is, and whether it is for the model at hand. Imports no torch."""

from pathlib import Path
from typing import Literal

from safelight.errors import IncompatibleControl, UnsupportedOption
from safelight.models.adapters.control_file import CONTEXT_WIDTHS, require_unet
from safelight.models.checkpoints.families import Description
from safelight.models.weights.safetensors_file import read_header
from safelight.spec import PicturePromptRequest
from safelight.spec.effects import FACE_WIDTH

Projection = Literal["base", "plus", "full", "face", "face-plus"]
READS_PICTURES: tuple[Projection, ...] = ("base", "plus", "full", "face-plus")
"""Through an image encoder."""
READS_FACES: tuple[Projection, ...] = ("face", "face-plus")


def require_adapter(path: Path, model: Description, *, name: str, model_name: str) -> Projection:
    """The kind of projection; told from the header alone, before anything is loaded.

    Raises:
        UnsupportedOption: it is no IP-Adapter.
        IncompatibleControl: it is for a model of another width.
    """
    require_unet(model, name=name, model_name=model_name)
    shapes = {key: entry.shape for key, entry in read_header(path).tensors.items()}
    kind = kind_of(path)
    widths = [shape[-1] for key, shape in shapes.items() if key.endswith("to_k_ip.weight") and shape]
    needed = model.unet.get("cross_attention_dim")
    if widths[0] != needed:
        raise IncompatibleControl(
            name,
            f"its image tokens have width {widths[0]}, the model's prompt tokens {needed}",
            model=f"{model_name} ({model.family.name})",
            made_for=CONTEXT_WIDTHS.get(widths[0]),
        )
    return kind


def kind_of(path: Path) -> Projection:
    """
    Raises:
        UnsupportedOption: it is no IP-Adapter, or its projection is of no known kind.
    """
    shapes = {key: entry.shape for key, entry in read_header(path).tensors.items()}
    inside = {key.removeprefix("image_proj."): shape for key, shape in shapes.items() if key.startswith("image_proj.")}
    if not inside or not any(key.endswith("to_k_ip.weight") and shape for key, shape in shapes.items()):
        raise UnsupportedOption("picture_prompts", f"{path} is no IP-Adapter: those have image_proj. and ip_adapter.")
    if "latents" in inside:
        return "plus"
    if "proj.weight" in inside:
        return "base"
    if "proj.3.weight" in inside:
        return "full"
    width = inside.get("proj.0.weight", ())[-1:]
    if "norm.weight" in inside and width == (FACE_WIDTH,):
        return "face-plus" if "perceiver_resampler.proj_in.weight" in inside else "face"
    raise UnsupportedOption("picture_prompts", f"{path} is an IP-Adapter of no known kind")


def require_inputs(request: PicturePromptRequest, kind: Projection) -> None:
    """Raises UnsupportedOption where the request has not what such an adapter reads, or what it does not read."""

    def refuse(why: str) -> None:
        raise UnsupportedOption("picture_prompts", f"{request.model} {why}")

    if kind not in READS_FACES and (request.faces or request.face_model):
        refuse("reads pictures and no face embeddings: leave out faces and face_model")
    if kind in READS_PICTURES and request.image is None:
        refuse("reads a picture too: give an image" if request.faces else "reads a picture: give an image")
    if kind == "face" and request.image is not None and request.faces:
        refuse("reads an embedding alone: give faces, or an image for a face model")
    if kind == "face" and request.encoder:
        refuse("reads face embeddings, and needs no image encoder: leave out encoder")
    if kind == "face-plus" and len(request.faces) > 1:
        refuse("reads one face and its picture: give a picture prompt for each face")
    if kind != "face-plus" and request.shortcut is not None:
        refuse("is no FaceID Plus: leave out shortcut")


def has_shortcut(request: PicturePromptRequest, path: Path) -> bool:
    """Whether a FaceID Plus adds the face to what it reads of the picture; by name, as no tensor tells version 2."""
    if request.shortcut is not None:
        return request.shortcut
    return any("plusv2" in name.lower().replace("-", "").replace("_", "") for name in (path.name, request.model))
