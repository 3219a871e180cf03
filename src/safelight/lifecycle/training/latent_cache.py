"""Every picture goes through the autoencoder once; what comes out is kept in the run's folder."""

import hashlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from safelight.errors import StorageFailed
from safelight.lifecycle.training.dataset import Latent, Ready, encode_picture
from safelight.lifecycle.training.events import Preparing
from safelight.models.networks.latents import VAE
from safelight.models.weights.tensor_file import write_tensors


def latents_of(
    ready: Sequence[Ready], vae: VAE, *, mask: str, flip: bool, cache: Path | None, key: str
) -> Generator[Preparing, None, Latent]:
    """How latents are come by; `key` names all that they depend on besides the pictures' cuts.

    Without a `cache`, every picture is encoded each time it is shown.
    """
    if cache is None:
        return lambda one, flipped: encode_picture(one, vae, mask=mask, flipped=flipped)
    digest = digest_of(ready, key=f"{key} {mask} {flip}")
    if kept_digest(cache) != digest:
        tensors: dict[str, Tensor] = {}
        for number, one in enumerate(ready):
            yield Preparing(what="latents", done=number, total=len(ready))
            for flipped in (False, True) if flip else (False,):
                encoded, kept = encode_picture(one, vae, mask=mask, flipped=flipped)
                tensors[name_of(one, flipped)] = encoded
                if kept is not None:
                    tensors[f"{name_of(one, flipped)} mask"] = kept
        write(cache, tensors, digest)
    file = safe_open(cache, "pt")
    masked = mask != "none"

    def latent(one: Ready, flipped: bool) -> tuple[Tensor, Tensor | None]:
        name = name_of(one, flipped)
        return file.get_tensor(name), file.get_tensor(f"{name} mask") if masked else None

    return latent


def name_of(one: Ready, flipped: bool) -> str:
    return f"{one.example.key}{' mirrored' if flipped else ''}"


def digest_of(ready: Sequence[Ready], *, key: str) -> str:
    cuts = [[one.example.key, *one.cut.bucket, *one.cut.scaled] for one in ready]
    return hashlib.sha256(json.dumps([key, cuts]).encode()).hexdigest()


def kept_digest(cache: Path) -> str:
    try:
        with safe_open(cache, "pt") as file:
            return (file.metadata() or {}).get("digest", "")
    except (OSError, SafetensorError):
        return ""


def write(cache: Path, tensors: dict[str, Tensor], digest: str) -> None:
    plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    try:
        write_tensors(cache, plan, tensors.items(), metadata={"digest": digest})
    except StorageFailed as error:
        raise StorageFailed(f"{error}; free some space, or say --no-cache-latents") from None
