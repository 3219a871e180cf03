from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from safelight.errors import JobFailed
from safelight.models.networks.latents import VAE, DecodeFailed, decode, encode, from_pil, tile_starts, to_pil


def tiny(**config: Any) -> VAE:
    """An autoencoder of random weights; 4 image pixels along each side of a latent pixel."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        sample_size=32,
        **config,
    )
    return VAE(network.eval())


CONFIGS: dict[str, dict[str, Any]] = {
    "stable diffusion": {},
    "shifted": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "by channel": {
        "scaling_factor": 0.5,
        "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
        "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
    },
}


def scale_as_diffusers_does(z: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    if "latents_mean" in config:
        mean = torch.tensor(config["latents_mean"]).view(1, 4, 1, 1)
        std = torch.tensor(config["latents_std"]).view(1, 4, 1, 1)
        return (z - mean) * config["scaling_factor"] / std
    return (z - config.get("shift_factor", 0.0)) * config.get("scaling_factor", 0.18215)


def unscale_as_diffusers_does(latents: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    if "latents_mean" in config:
        mean = torch.tensor(config["latents_mean"]).view(1, 4, 1, 1)
        std = torch.tensor(config["latents_std"]).view(1, 4, 1, 1)
        return latents * std / config["scaling_factor"] + mean
    return latents / config.get("scaling_factor", 0.18215) + config.get("shift_factor", 0.0)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_latents_are_those_diffusers_draws_with_the_same_noise(name: str) -> None:
    vae = tiny(**CONFIGS[name])
    images = torch.rand(3, 3, 32, 24) * 2 - 1
    posterior = vae.network.encode(images).latent_dist
    noise = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(7))
    sample = posterior.sample(torch.Generator().manual_seed(7))
    assert torch.equal(encode(vae, images, noise), scale_as_diffusers_does(sample, CONFIGS[name]))
    assert torch.equal(encode(vae, images), scale_as_diffusers_does(posterior.mode(), CONFIGS[name]))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_pictures_are_those_diffusers_decodes(name: str) -> None:
    vae = tiny(**CONFIGS[name])
    latents = torch.randn(3, 4, 8, 6)
    expected = vae.network.decode(unscale_as_diffusers_does(latents, CONFIGS[name])).sample
    assert torch.equal(decode(vae, latents), expected)


def test_an_image_does_not_depend_on_its_batch_or_on_how_the_batch_is_split() -> None:
    vae = tiny()
    latents = torch.randn(5, 4, 8, 8)
    alone = torch.cat([decode(vae, latent[None]) for latent in latents])
    for pixels in (1, 32 * 32, 2 * 32 * 32, 10**9):
        together = decode(VAE(vae.network, pixels_per_call=pixels), latents)
        assert (together - alone).abs().max() <= 1e-5  # batch size changes float32 sums in their last bits


def test_no_call_exceeds_the_pixel_limit() -> None:
    vae = tiny()
    rows: list[int] = []
    vae.network.decoder.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    decode(VAE(vae.network, pixels_per_call=2 * 32 * 32), torch.randn(5, 4, 8, 8))
    assert rows == [2, 2, 1]
    rows.clear()
    decode(VAE(vae.network, pixels_per_call=3 * 32 * 32, tile=8, overlap=2), torch.randn(1, 4, 20, 8))
    assert rows == [3]


# Tiles ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.integers(1, 600), st.integers(4, 128), st.data())
def test_tiles_cover_everything_and_overlap_enough(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(VAE(None, tile=tile, overlap=overlap), length)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    assert all(0 < later - earlier <= tile - overlap for earlier, later in pairwise(starts))


class Local:
    """An autoencoder without context: what it makes of a pixel depends on that pixel alone."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            block_out_channels=(1, 1, 1), scaling_factor=1.0, shift_factor=None, latents_mean=None, latents_std=None
        )
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.sizes: set[tuple[int, ...]] = set()

    def decode(self, z: torch.Tensor) -> SimpleNamespace:
        self.sizes.add(tuple(z.shape[-2:]))
        return SimpleNamespace(sample=torch.nn.functional.interpolate(z[:, :3].sin(), scale_factor=4.0))

    def encode(self, x: torch.Tensor) -> SimpleNamespace:
        self.sizes.add(tuple(x.shape[-2:]))
        mean = torch.nn.functional.avg_pool2d(x, 4)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=torch.cat([mean, mean], dim=1)))


@pytest.mark.parametrize(("height", "width"), [(40, 8), (9, 33), (17, 16), (16, 16), (50, 41)])
def test_tiles_of_a_network_without_context_join_exactly(height: int, width: int) -> None:
    whole, tiled = VAE(Local(), tile=1000), VAE(Local(), tile=16, overlap=5)
    latents = torch.randn(2, 4, height, width)
    images = decode(whole, latents)
    # The weights of overlapping tiles sum to one; dividing by their sum rounds.
    assert (decode(tiled, latents) - images).abs().max() <= 1e-6
    assert (encode(tiled, images) - encode(whole, images)).abs().max() <= 1e-6
    assert all(side <= 64 for size in tiled.network.sizes for side in size)


class Centred(Local):
    """Like group normalisation, it sees the whole tile: it subtracts the tile's mean."""

    def decode(self, z: torch.Tensor) -> SimpleNamespace:
        return super().decode(z - z.mean(dim=(2, 3), keepdim=True))


@pytest.mark.parametrize("overlap", [2, 5, 8])
def test_tiles_that_differ_are_blended_over_their_overlap(overlap: int) -> None:
    latents = torch.linspace(-1, 1, 40).expand(1, 4, 40, 40) * 1e-2  # small, where the sine is a line
    error = decode(VAE(Centred(), tile=24, overlap=overlap), latents) - decode(VAE(Centred()), latents)
    starts = tile_starts(VAE(None, tile=24, overlap=overlap), 40)
    disagreement = (starts[1] - starts[0]) * (latents[0, 0, 0, 1] - latents[0, 0, 0, 0])
    fade = 4 * overlap
    # One tile's weight falls by 1/fade a pixel while the other's rises, twice as fast where ramps meet early.
    assert error.diff(dim=-1).abs().max() <= 2.05 * disagreement / fade


# Half precision ------------------------------------------------------------------------------------------------


def test_only_images_that_fail_in_float16_are_decoded_again_in_float32() -> None:
    vae = tiny(mid_block_add_attention=False)
    latents = torch.randn(4, 4, 4, 4)
    latents[2] *= 1e5  # beyond float16's 65504 once unscaled
    expected = decode(vae, latents)
    vae.network.to(torch.float16)
    weights = {name: tensor.clone() for name, tensor in vae.network.state_dict().items()}
    calls: list[tuple[torch.dtype, int]] = []
    vae.network.decoder.register_forward_hook(lambda _module, args, _out: calls.append((args[0].dtype, len(args[0]))))

    images = decode(vae, latents)
    assert calls == [(torch.float16, 4), (torch.float32, 1)]
    assert images.dtype == torch.float32
    # float16 keeps 11 bits, through some thirty layers; only gross error would be a fault of ours.
    assert (images - expected).abs().max() <= 0.05 * expected.abs().max()
    assert vae.network.dtype == torch.float16
    assert all(torch.equal(weights[name], tensor) for name, tensor in vae.network.state_dict().items())


def test_a_network_is_put_back_even_when_the_second_try_crashes() -> None:
    vae = tiny(mid_block_add_attention=False)
    vae.network.to(torch.float16)

    def crash_in_float32(_module: Any, args: Any) -> None:
        if args[0].dtype == torch.float32:
            raise MemoryError

    vae.network.decoder.register_forward_pre_hook(crash_in_float32)
    with pytest.raises(MemoryError):
        decode(vae, torch.full((1, 4, 4, 4), 1e6))
    assert vae.network.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_image_that_cannot_be_decoded_is_named_and_the_others_are_returned(dtype: torch.dtype) -> None:
    vae = tiny(mid_block_add_attention=False)
    vae.network.to(dtype)
    latents = torch.randn(3, 4, 4, 4)
    expected = decode(vae, latents)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(JobFailed, match="picture 1 of a batch of 3") as caught:
        decode(vae, latents)
    assert isinstance(caught.value, DecodeFailed)
    assert caught.value.rows == [1]
    assert torch.equal(caught.value.images[[0, 2]], expected[[0, 2]])


def test_encoding_recovers_too() -> None:
    vae = tiny(mid_block_add_attention=False)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        vae.network.quant_conv.weight *= 1.8e5  # still within float16; what it makes is not
        expected = encode(vae, images)
    vae.network.to(torch.float16)
    assert not vae.network.encode(images.half()).latent_dist.mode().isfinite().all()
    # The weights were rounded to 11 bits.
    assert (encode(vae, images) - expected).abs().max() <= 0.01 * expected.abs().max()


# PIL -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor() -> Any:
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor(vae_scale_factor=8, do_resize=False)


def test_rounding_to_bytes_is_that_of_diffusers(processor: Any) -> None:
    halves = (torch.arange(-10, 520) / 2 / 255 * 2 - 1).view(1, 1, 10, 53).expand(1, 3, 10, 53)
    for images in (halves, torch.randn(4, 3, 64, 48), torch.rand(2, 3, 8, 8).to(torch.bfloat16)):
        ours, theirs = to_pil(images), processor.postprocess(images.float(), output_type="pil")
        assert [np.asarray(image).tolist() for image in ours] == [np.asarray(image).tolist() for image in theirs]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_reading_bytes_is_that_of_diffusers(processor: Any, mode: str) -> None:
    pixels = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    image = Image.fromarray(pixels).convert(mode)
    assert torch.equal(from_pil(image), processor.preprocess(image.convert("RGB"))[0])


@given(st.integers(0, 255))
def test_a_byte_comes_back_as_it_was(level: int) -> None:
    image = Image.new("RGB", (2, 1), (level, 255 - level, level))
    (back,) = to_pil(from_pil(image)[None])
    assert back.tobytes() == image.tobytes()
