"""Stable Diffusion, end to end: `generate` makes pictures, `open_studio` gives you every part.

Importing this package loads nothing heavy; the first use does.
"""

from typing import TYPE_CHECKING, Any

from safelight.version import __version__

__all__ = ["__version__", "generate", "open_studio"]

if TYPE_CHECKING:
    from safelight.api import generate
    from safelight.studio import open_studio


def __getattr__(name: str) -> Any:
    if name == "open_studio":
        from safelight.studio import open_studio

        return open_studio
    if name == "generate":
        from safelight.api import generate

        return generate
    raise AttributeError(f"module 'safelight' has no attribute {name!r}")
