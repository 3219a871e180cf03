"""Encode every picture once, and cache the latents in the run's folder."""

import hashlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from safelight.errors import StorageFailed
from safelight.lifecycle.training.dataset import LoadLatent, TrainingPicture, encode_picture
from safelight.lifecycle.training.events import Preparing
from safelight.models.networks.latents import VAE
from safelight.models.weights.tensor_file import write_tensors


def prepare_latents(
    pictures: Sequence[TrainingPicture], vae: VAE, *, mask: str, flip: bool, cache: Path | None, key: str
) -> Generator[Preparing, None, LoadLatent]:
    """Returns the function that loads a picture's latent and mask.

    Without a `cache`, every picture is encoded each time it is used.

    Args:
        key: names everything that the latents depend on, apart from the pictures' crops.
    """
    if cache is None:
        return lambda picture, flipped: encode_picture(picture, vae, mask=mask, flipped=flipped)
    digest = digest_of(pictures, key=f"{key} {mask} {flip}")
    if stored_digest(cache) != digest:
        tensors: dict[str, Tensor] = {}
        for number, picture in enumerate(pictures):
            yield Preparing(what="latents", done=number, total=len(pictures))
            for flipped in (False, True) if flip else (False,):
                encoded, encoded_mask = encode_picture(picture, vae, mask=mask, flipped=flipped)
                tensors[name_of(picture, flipped)] = encoded
                if encoded_mask is not None:
                    tensors[f"{name_of(picture, flipped)} mask"] = encoded_mask
        write(cache, tensors, digest)
    file = safe_open(cache, "pt")
    masked = mask != "none"

    def load_latent(picture: TrainingPicture, flipped: bool) -> tuple[Tensor, Tensor | None]:
        name = name_of(picture, flipped)
        return file.get_tensor(name), file.get_tensor(f"{name} mask") if masked else None

    return load_latent


def name_of(picture: TrainingPicture, flipped: bool) -> str:
    return f"{picture.example.key}{' mirrored' if flipped else ''}"


def digest_of(pictures: Sequence[TrainingPicture], *, key: str) -> str:
    crops = [[picture.example.key, *picture.crop.bucket, *picture.crop.scaled] for picture in pictures]
    return hashlib.sha256(json.dumps([key, crops]).encode()).hexdigest()


def stored_digest(cache: Path) -> str:
    try:
        with safe_open(cache, "pt") as file:
            return (file.metadata() or {}).get("digest", "")
    except (OSError, SafetensorError):
        return ""


def write(cache: Path, tensors: dict[str, Tensor], digest: str) -> None:
    """Write latents (c, h, w) and masks (1, h, w) by name."""
    plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    try:
        write_tensors(cache, plan, tensors.items(), metadata={"digest": digest})
    except StorageFailed as error:
        raise StorageFailed(f"{error}; free some space, or use --no-cache-latents") from None
