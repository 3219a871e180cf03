"""Stable Diffusion, end to end: `generate` makes pictures, `open_studio` gives you every part.

Importing this package loads nothing heavy; the first use does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "generate", "open_studio"]

if TYPE_CHECKING:
    from safelight.pictures import generate_pictures as generate
    from safelight.studio import open_studio


def __getattr__(name: str) -> Any:
    if name == "open_studio":
        from safelight.studio import open_studio

        return open_studio
    if name == "generate":
        # The module of the path: calling it draws pictures (see its last lines).
        return import_module("safelight.generate")
    raise AttributeError(f"module 'safelight' has no attribute {name!r}")
