"""Preprocessors by name: they make control images for ControlNets. torch is imported only for depth."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from safelight.errors import InvalidRequest, nearest
from safelight.imaging import outlines
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.spec.effects import HintKind

if TYPE_CHECKING:
    from safelight.models.networks.memory import Allocation
    from safelight.models.networks.placement import Placement
    from safelight.models.vision.depth import DepthModel

PREPROCESSORS: Mapping[str, str] = {
    "none": "the picture is a hint already",
    "canny": "thin lines at edges, as OpenCV's Canny",
    "soft-edge": "grey lines, brighter at stronger edges",
    "scribble": "broad strokes",
    "lineart": "the strokes of a drawing",
    "tile": "the picture itself, to be drawn again with more detail",
    "invert": "the inverse of a drawing that is black on white",
    "depth": "depth map (near is white), by the model in SAFELIGHT_HOME/depth-models; depth/NAME if there are several",
}
WITHOUT_MODEL: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "soft-edge": outlines.soft_edge,
    "scribble": outlines.scribble,
    "lineart": outlines.lineart,
    "tile": lambda image: image,
    "invert": outlines.invert,
}

PREPROCESSOR_KINDS: Mapping[str, HintKind] = {
    "canny": "hard-edge",
    "lineart": "hard-edge",
    "invert": "hard-edge",
    "soft-edge": "soft-edge",
    "scribble": "soft-edge",
    "tile": "tile",
    "depth": "depth",
}
"""The kind of their control images, for ControlNets that support several kinds."""


def require_preprocessor(name: str) -> None:
    """
    Raises:
        InvalidRequest: there is no preprocessor of that name.
    """
    if name not in PREPROCESSORS and not name.startswith("depth/"):
        known = list(PREPROCESSORS)
        raise InvalidRequest(f"no preprocessor named {name!r}{nearest(name, known)}; known: {', '.join(known)}")


@dataclass(slots=True)
class Preprocessors:
    folder: ControlFolder
    placement: "Callable[[], Placement]"
    """Device and dtype of depth models; called only when one runs."""
    depths: dict[Path, Any] = field(default_factory=dict[Path, Any])
    """The depth models in memory (`memory.py`)."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def make_hint(self, name: str, image: Image.Image, *, thresholds: tuple[float, float] | None = None) -> Image.Image:
        """Return a control image of the image's size.

        Raises:
            InvalidRequest: there is no preprocessor of that name, or no model for it.
        """
        require_preprocessor(name)
        if thresholds is not None and name != "canny":
            raise InvalidRequest(f"thresholds are for canny only, not for {name}")
        if name == "canny":
            return outlines.canny(image, thresholds)
        if name in WITHOUT_MODEL:
            return WITHOUT_MODEL[name](image.convert("RGB"))
        with self.lock:
            return self.depth_model(self.depth_path(name)).read(image)

    def allocations(self, name: str) -> "list[Allocation]":
        """Return the memory that the preprocessor's weights need: none, except for depth.

        Raises:
            InvalidRequest: there is no preprocessor of that name, or no model for it.
        """
        require_preprocessor(name)
        if name == "canny" or name in WITHOUT_MODEL:
            return []
        from safelight.models.networks.memory import Allocation
        from safelight.models.networks.size_estimate import weights_bytes

        path = self.depth_path(name)
        size = weights_bytes(self.folder.files("depth", path), self.placement())
        drop = partial(self.depths.pop, path, None)
        return [Allocation(key=("depth", path), kind="depth", name=path.name, size_bytes=size, drop=drop)]

    def depth_path(self, name: str) -> Path:
        known = self.folder.paths("depth")
        wanted = name.partition("/")[2]
        if not wanted and len(known) > 1:
            raise InvalidRequest(f"depth: there are several models; name one, such as depth/{min(known)}")
        return self.folder.path("depth", wanted or next(iter(known), "depth"))

    def depth_model(self, path: Path) -> "DepthModel":
        from safelight.models.vision.depth import load_depth

        if path not in self.depths:
            self.depths[path] = load_depth(path, self.placement())
        return self.depths[path]
