"""What kind of IP-Adapter a file is, and whether it is for the model at hand. Imports no torch."""

from pathlib import Path
from typing import Literal

from safelight.errors import IncompatibleControl, UnsupportedOption
from safelight.models.adapters.control_file import CONTEXT_WIDTHS, require_unet
from safelight.models.checkpoints.families import Description
from safelight.models.weights.safetensors_file import read_header

Projection = Literal["base", "plus", "full"]


def require_adapter(path: Path, model: Description, *, name: str, model_name: str) -> Projection:
    """The kind of projection; told from the header alone, before anything is loaded.

    Raises:
        UnsupportedOption: it is no IP-Adapter, or one that looks at faces.
        IncompatibleControl: it is for a model of another width.
    """
    require_unet(model, name=name, model_name=model_name)
    shapes = {key: entry.shape for key, entry in read_header(path).tensors.items()}
    inside = {key.removeprefix("image_proj.") for key in shapes if key.startswith("image_proj.")}
    widths = [shape[-1] for key, shape in shapes.items() if key.endswith("to_k_ip.weight") and shape]
    if not inside or not widths:
        raise UnsupportedOption(
            "picture_prompts", f"{path} is not an IP-Adapter: it needs tensors image_proj.* and ip_adapter.*"
        )
    needed = model.unet.get("cross_attention_dim")
    if widths[0] != needed:
        raise IncompatibleControl(
            name,
            f"its image tokens have width {widths[0]}, the model's prompt tokens {needed}",
            model=f"{model_name} ({model.family.name})",
            made_for=CONTEXT_WIDTHS.get(widths[0]),
        )
    if "latents" in inside:
        return "plus"
    if "proj.weight" in inside:
        return "base"
    if "proj.3.weight" in inside:
        return "full"
    raise UnsupportedOption("picture_prompts", f"{path} reads faces (FaceID), which needs a network that finds them")
