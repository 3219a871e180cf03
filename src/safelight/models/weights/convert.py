"""A pickle becomes safetensors, in a separate process that is locked down (unpickle.py)."""

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
ROOM_BYTES = 12 * 2**30
"""Address space for torch itself, of which it uses little."""
ASKED_FOR = re.compile(r"GLOBAL ([\w.]+)")


def convert_pickle(given: Path, out: Path) -> Header:
    """Write the tensors of a `.ckpt`, `.pt`, `.pth` or `.bin` as safetensors; nothing in it is run.

    Raises:
        InvalidRequest: not such a file, or `out` is there already.
        UnsafeFile: it asks for more than tensors and plain containers.
        CorruptModel: it is no pickle that torch wrote, or is damaged.
    """
    if given.suffix not in PICKLE_SUFFIXES or not given.is_file():
        raise InvalidRequest(f"{given} is not a file that ends with {', '.join(PICKLE_SUFFIXES)}")
    if out.suffix != ".safetensors" or out.exists():
        raise InvalidRequest(f"{out} must end with .safetensors, and must not be there yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    memory = 4 * given.stat().st_size + ROOM_BYTES
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as room:
        part = Path(room) / "out.safetensors"
        # Nothing of ours goes in: no environment that may hold secrets, no folder of ours on the path.
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(PROGRAM), str(given.resolve()), str(part.resolve()), str(memory)],
                cwd=room,
                env={"PATH": os.environ.get("PATH", ""), "HOME": room, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=MAX_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise fault(given, "") from None
        if done.returncode:
            raise fault(given, done.stdout)
        header = read_header(part)
        part.replace(out)
    return header


def fault(given: Path, said: str) -> CorruptModel | UnsafeFile:
    try:
        message = str(json.loads(said)["error"])
    except (ValueError, KeyError, TypeError):
        message = "the process was stopped: it took more memory or time than such a file may"
    asked = ASKED_FOR.search(message)
    if asked or "Unsupported" in message or "weights_only" in message.lower():
        what = f"it asks for {asked[1]}" if asked else "it asks for more than tensors"
        return UnsafeFile(f"{given} is not converted: {what}, which weights have no need of")
    return CorruptModel(f"{given} cannot be read: {' '.join(message.split())[:300]}")
