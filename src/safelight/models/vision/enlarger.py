"""An upscaler of a plugin."""

from typing import Any, Protocol, get_args

from PIL import Image

from safelight.errors import JobFailed, SafelightError
from safelight.models.networks.placement import Placement
from safelight.plugins import Plugin, Plugins
from safelight.spec.fields import BundledUpscaler

RESERVED = {"lanczos", *get_args(BundledUpscaler), "none", "diffusion"}
"""Names of safelight's own upscalers; what AUTOMATIC1111 calls the lack of one; `safelight upscale`'s redrawing."""


class Enlarger(Protocol):
    """Made once, when a studio opens, with the device to compute on. Called by several threads at once."""

    placement: Placement
    size_bytes: int = 0
    """Memory that its weights take from the first call until `unload`."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    def enlarge(self, image: Image.Image, scale: float) -> Image.Image:
        """The picture, in RGB, about `scale` times as large; it is then resampled to the exact size."""
        ...

    def unload(self) -> None:
        """Drop the weights: their memory is needed. The next call loads them again."""


def open_enlargers(plugins: Plugins, placement: Placement) -> dict[str, Enlarger]:
    """One of each that plugins add."""

    def make(plugin: Plugin, loaded: Any) -> Enlarger:
        if plugin.name.casefold() in RESERVED:
            raise SafelightError("one of safelight's own upscalers has its name")
        enlarger = loaded(placement)
        kind = type(enlarger)
        if Enlarger not in kind.__mro__:
            raise SafelightError(f"{kind.__name__} is no subclass of safelight.models.vision.enlarger.Enlarger")
        if kind.enlarge is Enlarger.enlarge:
            raise SafelightError(f"{kind.__name__} has no method enlarge")
        return enlarger

    return plugins.load("upscaler", make)


def enlarge_exactly(name: str, enlarger: Enlarger, image: Image.Image, scale: float) -> Image.Image:
    """
    Raises:
        JobFailed: the plugin returned something else than a picture.
    """
    large: Any = enlarger.enlarge(image.convert("RGB"), scale)
    if not isinstance(large, Image.Image):
        raise JobFailed(f"the upscaler {name!r} returned a {type(large).__name__}, and no picture")
    size = round(image.width * scale), round(image.height * scale)
    return large.convert("RGB") if large.size == size else large.convert("RGB").resize(size, Image.Resampling.LANCZOS)
