"""Convert a pickle to safetensors, in a separate, sandboxed process (unpickle.py)."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from safelight.errors import CorruptModel, InvalidRequest, UnsafeFile
from safelight.models.weights.safetensors_file import PICKLE_SUFFIXES, Header, read_header

PROGRAM = Path(__file__).with_name("unpickle.py")
MAX_S = 1800
TORCH_BYTES = 12 * 2**30
"""Address space for torch itself, most of which it never uses."""
REQUESTED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def convert_pickle(pickle_path: Path, out: Path) -> Header:
    """Write the tensors of a `.ckpt`, `.pt`, `.pth` or `.bin` as safetensors; no code in it is run.

    Raises:
        InvalidRequest: not such a file, or `out` exists already.
        UnsafeFile: it needs more than tensors and plain containers.
        CorruptModel: it is not a pickle written by torch, or is damaged.
    """
    if pickle_path.suffix not in PICKLE_SUFFIXES or not pickle_path.is_file():
        raise InvalidRequest(f"{pickle_path} is not a file that ends with {', '.join(PICKLE_SUFFIXES)}")
    if out.suffix != ".safetensors" or out.exists():
        raise InvalidRequest(f"{out} must end with .safetensors, and must not exist yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    memory = 4 * pickle_path.stat().st_size + TORCH_BYTES
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as folder:
        part = Path(folder) / "out.safetensors"
        # The process gets no environment, which may hold secrets, and no folder of ours on its path.
        try:
            process = subprocess.run(
                [sys.executable, "-I", str(PROGRAM), str(pickle_path.resolve()), str(part.resolve()), str(memory)],
                cwd=folder,
                env={"PATH": os.environ.get("PATH", ""), "HOME": folder, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=MAX_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise problem(pickle_path, "") from None
        if process.returncode:
            raise problem(pickle_path, process.stdout)
        header = read_header(part)
        part.replace(out)
    return header


def problem(pickle_path: Path, output: str) -> CorruptModel | UnsafeFile:
    try:
        message = str(json.loads(output)["error"])
    except (ValueError, KeyError, TypeError):
        message = "the process was stopped: it took more memory or time than such a file may"
    requested = REQUESTED_GLOBAL.search(message)
    if requested or "Unsupported" in message or "weights_only" in message.lower():
        reason = f"it needs {requested[1]}" if requested else "it needs more than tensors"
        return UnsafeFile(f"{pickle_path} was not converted: {reason}, which weights never need")
    return CorruptModel(f"{pickle_path} cannot be read: {' '.join(message.split())[:300]}")
