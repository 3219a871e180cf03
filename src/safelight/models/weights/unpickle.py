"""Extract tensors from a pickle, as a separate program: `python -I unpickle.py IN OUT MEMORY_BYTES`.

It imports nothing from safelight. Before it opens the file it limits its memory and CPU time and, where Linux allows
it, gives up the network. torch's restricted unpickler then builds only tensors and plain containers; a file that needs
anything else is refused with the name of that.
"""

import ctypes
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
"""CLONE_NEWUSER and CLONE_NEWNET of <sched.h>."""
MAX_S = 900
WRAPPERS = ("state_dict", "params_ema", "params", "model", "string_to_param")
"""Keys under which trainers store the tensors: Lightning, ESRGAN, textual inversion."""
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
"""The first Stable Diffusion checkpoints refer to this class, as the key of an unused dictionary."""


class Inert:
    """Placeholder for a known class that is not needed."""


def lock_down(memory_bytes: int) -> None:
    with suppress(ImportError):
        import resource

        for what, limit in (
            (resource.RLIMIT_AS, memory_bytes),
            (resource.RLIMIT_CPU, MAX_S),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, memory_bytes),
        ):
            resource.setrlimit(what, (limit, limit))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # One of them is allowed nearly everywhere; otherwise only the restricted unpickler protects.
        _ = libc.unshare(NEW_NETWORK) and libc.unshare(NEW_USER | NEW_NETWORK)


def tensors_of(value: Any) -> dict[str, Any]:
    """Return the tensors of the innermost wrapped dictionary, flattened."""
    for _ in WRAPPERS:
        inner = next((value[key] for key in WRAPPERS if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = inner
    return dict(flatten(value, ""))


def flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    import torch

    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, torch.Tensor):
            yield ("emb_params" if name == "*" else name), inner.detach().clone().contiguous()
        elif isinstance(inner, dict) and isinstance(key, str):
            yield from flatten(inner, f"{name}.")


def main(pickle_path: str, out: str, memory_bytes: int) -> None:
    lock_down(memory_bytes)
    import torch
    from safetensors.torch import save_file

    torch.serialization.add_safe_globals([(Inert, CALLBACK)])
    value = torch.load(pickle_path, map_location="cpu", weights_only=True)
    tensors = tensors_of(value) if isinstance(value, dict) else {}
    if not tensors:
        raise ValueError("it has no named tensors")
    save_file(tensors, out, metadata={"format": "pt"})


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except BaseException as error:  # noqa: BLE001  the parent process reports it
        sys.stdout.write(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
