"""Removes paths and addresses of this machine from error messages before callers see them.

Errors name files by their full path, which suits the command line. A remote caller only gets
`SAFELIGHT_HOME/loras/ink.safetensors`, or the bare file name if the file is outside of that folder. The log keeps the
full message.
"""

import logging
import os
import re
from pathlib import Path

from safelight.errors import SafelightError

log = logging.getLogger(__name__)

ROUTES = ("v1", "sdapi", "controlnet", "docs", "openapi.json")
"""Words that begin with a slash and are URL paths, not file paths."""
PATH = re.compile(
    rf"""(?<![\w./])/ (?! / | (?:{"|".join(map(re.escape, ROUTES))})\b) (?:[^\s/'"`,;:()]+/)+ (?P<name>[^\s/'"`,;:()]*)
    | \b[A-Za-z]:\\ (?:[^\s\\'"`,;:()]+\\)* (?P<last>[^\s\\'"`,;:()]*)""",
    re.VERBOSE,
)
SERVER = re.compile(r"""(?:connection to )?server at "[^"]*"(?: \([^)]*\))?, port \d+""")
"""The database address in messages of PostgreSQL's client."""


def redact_paths(message: str, home: Path) -> str:
    """The message with its paths shortened to what callers may know, and without the address of the database."""
    message = SERVER.sub("the database server", message)
    # Home first, as one string: it may contain spaces, where PATH would end.
    for folder in sorted({str(home), os.path.abspath(home), os.path.realpath(home)}, key=len, reverse=True):  # noqa: PTH100
        message = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w.-])", "SAFELIGHT_HOME", message)
    return PATH.sub(lambda found: found["name"] or found["last"] or "a folder", message)


def caller_message(error: SafelightError, home: Path) -> str:
    """The error's message for a caller; if anything was removed, the full message is logged."""
    message = str(error)
    redacted = redact_paths(message, home)
    if redacted != message:
        log.warning("a caller got this without paths: %s", message)
    return redacted
