"""What to try next: commands that work as they stand, pasted into the same shell."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safelight.spec import Denoised

MAX_LENGTH = 200
"""Characters; a longer command teaches nothing."""


def program() -> str:
    """The name under which this program was called: `safelight`, `.venv/bin/safelight`, ..."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{sys.executable} -m safelight"
    on_path = shutil.which(called.name)
    return called.name if on_path and Path(on_path).resolve() == called.resolve() else str(called)


def command(*words: object) -> str:
    return f"{program()} {shlex.join(str(word) for word in words)}"


def after(spec: "Denoised", path: Path, *, from_stdin: bool) -> list[str]:
    """Commands that draw the picture with more steps, and replay it from its file."""
    lines = [f"  {command('replay', path)}", f"  {command('samplers')}"]
    if not from_stdin:
        said = without(sys.argv[1:], {"--seed", "-s", "--steps", "-n", "--number"})
        lines = [f"  {command(*said, '--seed', spec.seed, '--steps', spec.steps * 2)}", *lines]
    return ["", "Try next:", *[line for line in lines if len(line) <= MAX_LENGTH][:2]]


def without(words: list[str], options: set[str]) -> list[str]:
    """The arguments of a command, without these options and their values."""
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in options:
            next(rest, None)
        elif word.partition("=")[0] not in options:
            left.append(word)
    return left
