"""Flux in one file with all its parts; `tests/parity/test_whole_files.py` compares its pictures with diffusers'."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import draw, spec_for
from tests.models.ldm_files import autoencoder, clip, flux, t5, under, write_flux
from tests.tiny_models import CPU, load
from torch import Tensor

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.models.checkpoints.digest import file_sum
from safelight.models.checkpoints.families import describe
from safelight.models.networks.size_estimate import model_size
from safelight.models.weights.identify import Identity
from safelight.models.weights.safetensors_file import Entry, Header
from safelight.models.weights.single_file import derive

NETWORK, T5 = "model.diffusion_model.", "text_encoders.t5xxl.transformer."


def test_a_file_is_drawn_with_its_own_parts(tmp_path: Path) -> None:
    path = write_flux(tmp_path / "flux.safetensors")
    ours = load(path)
    about = ours.description
    assert (about.family.name, about.t5, about.defaults.sampler) == ("flux", "text_encoder_2", "Default")
    assert (about.vae["scaling_factor"], about.vae["shift_factor"], about.latent_channels) == (0.3611, 0.1159, 16)
    assert ours.digest == file_sum(path)
    networks = [ours.unet, ours.vae.network, *(reader.network for reader in ours.prompt_encoders.values())]
    tensors = {tensor.data_ptr(): tensor for network in networks for tensor in network.state_dict().values()}
    # CLIP's projection and scale are in the file, and of no use to Flux.
    assert model_size(about, CPU).total == sum(tensor.nbytes for tensor in tensors.values()) + 4 * (64 * 64 + 1)
    wishes = {"sampler": "Default", "width": 64, "height": 64, "steps": 2}
    images = [draw(spec_for(ours, prompt=words, **wishes), ours) for words in ("a cat", "a dog")]
    assert images[0].tobytes() != images[1].tobytes()


def test_the_published_checkpoint_is_described_as_it_was_published() -> None:
    shapes = [
        *under(NETWORK, flux(width=3072, joint=4096, pooled=768, head=128, blocks=19)),
        *under("vae.", autoencoder((128, 256, 512, 512), latents=16, quantised=False)),
        *under("text_encoders.clip_l.transformer.", clip(768, 12)),
        *under(T5, t5(4096, layers=24, heads=64)),
    ]
    header = Header({name: Entry("F8_E4M3", shape, 0, 0) for name, shape in shapes}, {})
    derived: dict[str, Any] = dict(derive(header, Identity(kind="checkpoint", base="flux")))
    expected: dict[str, Any] = {
        "num_layers": 19, "num_single_layers": 19, "num_attention_heads": 24, "attention_head_dim": 128,
        "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True, "in_channels": 64,
        "axes_dims_rope": [16, 56, 56], "patch_size": 1,
    }  # fmt: skip
    assert derived["transformer"] == expected
    told = {"d_model": 4096, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
    assert {name: derived["text_encoder_2"][name] for name in told} == told
    assert derived["text_encoder_2"]["feed_forward_proj"] == "gated-gelu"
    assert derived["scheduler"]["use_dynamic_shifting"]
    assert derived["text_encoder"]["hidden_act"] == "quick_gelu"


def test_weights_scaled_to_eight_bits_are_multiplied_back(tmp_path: Path) -> None:
    """As ComfyUI's files have them, in the network and in T5."""

    def scale(tensors: dict[str, Tensor]) -> None:
        for part in (NETWORK, T5):
            tensors[f"{part}scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
        for name, tensor in list(tensors.items()):
            if tensor.ndim == 2 and name.startswith((NETWORK, T5)) and "relative" not in name and "shared" not in name:
                factor = tensor.abs().max() / 448  # the largest number of the format
                tensors[name] = (tensor / factor).to(torch.float8_e4m3fn)
                tensors[f"{name.removesuffix('weight')}scale_weight"] = factor

    exact = load(write_flux(tmp_path / "exact.safetensors"))
    rounded = load(write_flux(tmp_path / "rounded.safetensors", change=scale))
    assert exact.t5 is not None
    assert rounded.t5 is not None
    for ours, theirs in ((exact.unet, rounded.unet), (exact.t5.network, rounded.t5.network)):
        given = theirs.state_dict()
        for name, tensor in ours.state_dict().items():
            assert (given[name] - tensor).abs().max() <= tensor.abs().max() / 16  # three bits of mantissa
    assert not torch.equal(exact.unet.proj_out.weight, rounded.unet.proj_out.weight)


def without(*prefixes: str) -> Any:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefixes)]:
            del tensors[name]

    return drop


@pytest.mark.parametrize(
    ("prefixes", "error", "words"),
    [
        (
            (T5,),
            CorruptModel,
            "lacks T5 .*the only encoder Flux attends to: get a file that includes its text encoders",
        ),
        (("vae.",), CorruptModel, "lacks an autoencoder"),
        (("text_encoders.clip_l.",), CorruptModel, "lacks a text encoder"),
        (("vae.", "text_encoders."), UnsupportedOption, "holds the network alone.*safelight models join .* FOLDER"),
    ],
)
def test_a_file_that_lacks_a_part_says_what_to_get(
    prefixes: tuple[str, ...], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        describe(write_flux(tmp_path / "bare.safetensors", change=without(*prefixes)))
