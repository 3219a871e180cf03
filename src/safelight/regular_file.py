"""Open regular files only, by untrusted names.

A pipe blocks its reader until somebody writes, a device may do anything, and links may form a loop. All of these raise
`OSError` here, as a missing file does. One case remains: on a file system that no longer answers, such as a network
mount, `stat` itself blocks.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

NOT_REGULAR = "it is not a regular file"


def open_regular(path: Path) -> BufferedReader:
    """Open the file for reading.

    Raises:
        OSError: it is missing, not readable, or not a regular file.
    """
    return open(path, "rb", opener=opener)


def read_regular(path: Path) -> bytes:
    """Return the file's content; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def opener(path: str, flags: int) -> int:
    require_regular(os.stat(path), path)  # noqa: PTH116  checked before opening, which has side effects on devices
    # If a pipe took the name since, O_NONBLOCK opens it without waiting; regular files ignore the flag.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def require_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, path)


def is_regular(path: Path) -> bool:
    """Return whether a regular file exists; False for invalid names, such as too long ones or with a NUL."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def real_path(path: Path) -> Path:
    """Resolve links; a link loop is returned unchanged, where `Path.resolve` would raise."""
    return Path(os.path.realpath(path))
