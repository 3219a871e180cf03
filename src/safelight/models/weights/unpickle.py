"""Tensors out of a pickle, run as a program of its own: `python -I unpickle.py IN OUT MEMORY_BYTES`.

It imports nothing of safelight. Before it opens the file it gives up what it does not need: most memory and time, and,
where Linux lets it, the network. torch's restricted unpickler then builds tensors and plain
containers only; a file that asks for anything else is refused by name.
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
"""Keys under which trainers put the tensors: Lightning, ESRGAN, textual inversion."""
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
"""The first Stable Diffusion checkpoints name this class, as the key of a dictionary nobody reads."""


class Inert:
    """Stands where a known, unneeded class is named."""


def lock_down(memory_bytes: int) -> None:
    with suppress(ImportError):
        import resource

        for what, most in (
            (resource.RLIMIT_AS, memory_bytes),
            (resource.RLIMIT_CPU, MAX_S),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, memory_bytes),
        ):
            resource.setrlimit(what, (most, most))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # One of them is allowed nearly everywhere; where neither is, the unpickler alone must do.
        _ = libc.unshare(NEW_NETWORK) and libc.unshare(NEW_USER | NEW_NETWORK)


def tensors_of(value: Any) -> dict[str, Any]:
    """The deepest dictionary that a trainer wraps its tensors in, flat."""
    for _ in WRAPPERS:
        inner = next((value[key] for key in WRAPPERS if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = inner
    return dict(flat(value, ""))


def flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    import torch

    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, torch.Tensor):
            yield ("emb_params" if name == "*" else name), inner.detach().clone().contiguous()
        elif isinstance(inner, dict) and isinstance(key, str):
            yield from flat(inner, f"{name}.")


def main(given: str, out: str, memory_bytes: int) -> None:
    lock_down(memory_bytes)
    import torch
    from safetensors.torch import save_file

    torch.serialization.add_safe_globals([(Inert, CALLBACK)])
    value = torch.load(given, map_location="cpu", weights_only=True)
    tensors = tensors_of(value) if isinstance(value, dict) else {}
    if not tensors:
        raise ValueError("it holds no tensors by name")
    save_file(tensors, out, metadata={"format": "pt"})


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent says it
        sys.stdout.write(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
