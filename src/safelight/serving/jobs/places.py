"""What leaves the server names no place on it: sentences that were made for its operator become a stranger's.

Errors name files by their whole path, which is what whoever runs the command line wants to read. A caller knows a file
by the name that it asked for, and learns no more: `SAFELIGHT_HOME/loras/ink.safetensors`, or the file's own name where
it lies elsewhere. The log has the sentence as it was.
"""

import logging
import os
import re
from pathlib import Path

from safelight.errors import SafelightError

log = logging.getLogger(__name__)

ROUTES = ("v1", "sdapi", "controlnet", "docs", "openapi.json")
"""What begins with a slash and is no place on the machine."""
PATH = re.compile(
    rf"""(?<![\w./])/ (?! / | (?:{"|".join(map(re.escape, ROUTES))})\b) (?:[^\s/'"`,;:()]+/)+ (?P<name>[^\s/'"`,;:()]*)
    | \b[A-Za-z]:\\ (?:[^\s\\'"`,;:()]+\\)* (?P<last>[^\s\\'"`,;:()]*)""",
    re.VERBOSE,
)
SERVER = re.compile(r"""(?:connection to )?server at "[^"]*"(?: \([^)]*\))?, port \d+""")
"""How PostgreSQL's client names the database."""


def without_places(words: str, home: Path) -> str:
    """The sentence with every path in it cut down to what a stranger may know, and no address of the database."""
    words = SERVER.sub("the database server", words)
    # Home first, and as a whole: it may hold spaces, at which nothing else tells a path's end.
    for folder in sorted({str(home), os.path.abspath(home), os.path.realpath(home)}, key=len, reverse=True):  # noqa: PTH100
        words = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w.-])", "SAFELIGHT_HOME", words)
    return PATH.sub(lambda found: found["name"] or found["last"] or "a folder", words)


def told_to_strangers(error: SafelightError, home: Path) -> str:
    """What an error says to a caller; what is kept from it is in the log."""
    words = str(error)
    told = without_places(words, home)
    if told != words:
        log.warning("a caller was told without its places: %s", words)
    return told
