"""The memory available for weights, and the memory a checkpoint or LoRA will need, before it is loaded."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.models.weights.control_lora import full_shapes
from safelight.models.weights.safetensors_file import NETWORK, TEXT_ENCODER, Header, read_header, weight_files
from safelight.models.weights.single_file import EMA, UNET

if TYPE_CHECKING:
    import torch

    from safelight.models.checkpoints.families import Description
    from safelight.models.networks.placement import Placement

DENOISERS = ("unet", "transformer")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder")
SHARE = {"cpu": 0.6, "mps": 0.6, "cuda": 0.8}
"""Fraction of the device's memory for weights; the rest is for activations."""


def machine_bytes() -> int | None:
    """Return the memory this process may use: the machine's, or the container's limit if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def device_bytes(device: "torch.device") -> int | None:
    """Return the device's total memory for this process; None if it is unknown."""
    if device.type != "cuda":
        return machine_bytes()
    import torch

    return torch.cuda.get_device_properties(device).total_memory


def budget_bytes(device: "torch.device", chosen_gb: float | None) -> int:
    """Return the configured budget, or the default fraction of the device's memory; 8 GB is assumed if unknown."""
    if chosen_gb is not None:
        return int(chosen_gb * 1e9)
    return int((device_bytes(device) or 8e9) * SHARE[device.type])


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Sizes in bytes, in the dtype that the weights are stored in."""

    total: int
    unet: int
    """Of the denoising network alone."""


def model_size(description: "Description", placement: "Placement") -> ModelSize:
    """
    Raises:
        UnsafeFile, CorruptModel: as `read_header`.
    """
    if description.is_file:
        header = read_header(description.path)
        total = sum(element_counts(header)) - sum(element_counts(header, EMA))
        unet = sum(element_counts(header, UNET))
    else:
        stems = dict.fromkeys(DENOISERS, NETWORK) | {"vae": NETWORK} | dict.fromkeys(ENCODERS, TEXT_ENCODER)
        parts = {
            part: sum(
                count
                for path in weight_files(description.path / part, stem)
                for count in element_counts(read_header(path))
            )
            for part, stem in stems.items()
            if (description.path / part).is_dir()
        }
        total, unet = sum(parts.values()), sum(parts.get(part, 0) for part in DENOISERS)
    size = placement.dtype.itemsize
    return ModelSize(total * size, unet * size)


def lora_bytes(path: Path, placement: "Placement") -> int:
    """Return the bytes of an active LoRA: its own tensors, and their copies stacked for a batch."""
    return 2 * sum(element_counts(read_header(path))) * placement.dtype.itemsize


def weights_bytes(files: Iterable[Path], placement: "Placement", prefixes: Sequence[str] = ("",)) -> int:
    """Return the bytes of the tensors in safetensors files whose names begin with a prefix; other files count as 0."""
    headers = [read_header(path) for path in files if path.suffix == ".safetensors"]
    return (
        sum(sum(element_counts(header, prefix)) for header in headers for prefix in prefixes) * placement.dtype.itemsize
    )


def control_bytes(files: Iterable[Path], placement: "Placement") -> int:
    """Return the bytes of a ControlNet or adapter; for a Control-LoRA, those of the ControlNet it becomes."""
    headers = [read_header(path) for path in files if path.suffix == ".safetensors"]
    shapes = [full_shapes({name: entry.shape for name, entry in header.tensors.items()}) for header in headers]
    return sum(prod(shape) for shapes_by_name in shapes for shape in shapes_by_name.values()) * placement.dtype.itemsize


def element_counts(header: Header, prefix: str = "") -> Iterator[int]:
    """Yield the number of elements of each tensor whose name begins with the prefix."""
    return (prod(entry.shape) for name, entry in header.tensors.items() if name.startswith(prefix))
