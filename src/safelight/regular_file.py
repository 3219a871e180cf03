"""Regular files, and nothing else, are opened by a name that somebody else chose.

A pipe keeps its reader for as long as nobody writes, a device does what it likes, and a link may lead in a circle. All
of these are an `OSError` here, as a file that is missing is. What remains is a file system that no longer answers, such
as a network's: there `stat` itself waits, and whoever asked with it.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

NOT_REGULAR = "it is not a regular file"


def open_regular(path: Path) -> BufferedReader:
    """The file, open for reading.

    Raises:
        OSError: it is not there, may not be read, or is something else than a file.
    """
    return open(path, "rb", opener=opener)


def read_regular(path: Path) -> bytes:
    """All that is in the file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def opener(path: str, flags: int) -> int:
    require_regular(os.stat(path), path)  # noqa: PTH116  what is opened may be anything, and opening may do something
    # A pipe that came to lie there since is opened at once and not waited for; a file takes no notice.
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
    """Whether a file is there, under a name that may be none at all: too long, or with a NUL in it."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def real_path(path: Path) -> Path:
    """With its links followed; one that leads in a circle stays as it is, where `Path.resolve` would raise."""
    return Path(os.path.realpath(path))
