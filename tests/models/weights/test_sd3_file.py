"""Stable Diffusion 3 in one file, with its text encoders baked in: against diffusers' converter, and drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.fakes import draw, spec_for
from tests.models.ldm_files import Mmdit, mmdit, sd3_checkpoint, write_sd3
from tests.tiny_models import CPU, load
from torch import Tensor

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.models.checkpoints.families import describe
from safelight.models.networks.size_estimate import model_size
from safelight.models.weights.identify import Identity
from safelight.models.weights.safetensors_file import Entry, Header
from safelight.models.weights.single_file import derive

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")


@pytest.mark.parametrize("about", [Mmdit(), Mmdit(twice=0, norms=False, layers=3)], ids=["3.5", "3"])
def test_the_network_has_the_tensors_that_diffusers_converts(about: Mmdit, tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    path = write_sd3(tmp_path / "sd3.safetensors", about)
    ours = load(path)
    given = {name: tensor for name, tensor in load_file(path).items() if name.startswith("model.diffusion_model.")}
    theirs = convert_sd3_transformer_checkpoint_to_diffusers(given)
    mine = ours.unet.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("t5", [True, False])
def test_a_picture_is_drawn_of_its_own_text_encoders(t5: bool, tmp_path: Path) -> None:
    ours = load(write_sd3(tmp_path / "sd3.safetensors", Mmdit(t5=t5)))
    about = ours.description
    assert (about.family.name, about.t5, about.defaults.sampler) == ("sd3", "text_encoder_3" if t5 else "", "Default")
    assert (about.vae["scaling_factor"], about.vae["shift_factor"], about.latent_channels) == (1.5305, 0.0609, 16)
    networks = [ours.unet, ours.vae.network, *(reader.network for reader in ours.prompt_encoders.values())]
    tensors = {tensor.data_ptr(): tensor for network in networks for tensor in network.state_dict().values()}
    assert model_size(about, CPU).total == sum(tensor.nbytes for tensor in tensors.values())
    wishes = {"sampler": "Default", "width": 64, "height": 64, "steps": 2}
    images = [draw(spec_for(ours, prompt=words, **wishes), ours) for words in ("a cat", "a dog")]
    assert images[0].tobytes() != images[1].tobytes()


def test_a_t5_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        name = "text_encoders.t5xxl.transformer.shared.weight"
        tensors[name] = tensors[name][:1000].clone()

    with pytest.raises(CorruptModel, match="its T5 has a vocabulary of 1000; T5's has 32128 words"):
        load(write_sd3(tmp_path / "sd3.safetensors", Mmdit(t5=True), change=cut))


def test_a_projection_that_is_not_in_the_file_changes_nothing(tmp_path: Path) -> None:
    ours = load(write_sd3(tmp_path / "sd3.safetensors", Mmdit(projected=False)))
    assert torch.equal(ours.text_encoders[0].network.state_dict()["text_projection.weight"], torch.eye(64))


def test_the_published_checkpoint_is_described_as_it_was_published() -> None:
    about = Mmdit(layers=24, twice=13, joint=4096, widths=(768, 1280), positions=384)
    header = Header({name: Entry("F16", shape, 0, 0) for name, shape in sd3_checkpoint(about)}, {})
    what = Identity(kind="checkpoint", base="sd3", prediction="")
    derived: dict[str, Any] = dict(derive(header, what))
    expected = {
        "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "joint_attention_dim": 4096,
        "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "patch_size": 2,
        "in_channels": 16, "out_channels": 16, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm",
    }  # fmt: skip
    assert {name: derived["transformer"][name] for name in expected} == expected
    assert derived["text_encoder_2"]["hidden_act"] == "gelu"
    assert derived["scheduler"]["shift"] == 3.0


def test_a_file_without_text_encoders_says_what_to_get(tmp_path: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("text_encoders.")]:
            del tensors[name]

    with pytest.raises(CorruptModel, match="get a file that includes its text encoders"):
        describe(write_sd3(tmp_path / "bare.safetensors", change=drop))


def test_a_network_alone_says_what_to_get(tmp_path: Path) -> None:
    def strip(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensor = tensors.pop(name)
            if name.startswith("model.diffusion_model."):
                tensors[name.removeprefix("model.diffusion_model.")] = tensor

    with pytest.raises(UnsupportedOption, match="holds the network alone"):
        describe(write_sd3(tmp_path / "bare.safetensors", change=strip))


def test_a_tensor_of_another_network_is_refused(tmp_path: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.diffusion_model.joint_blocks.0.new.weight"] = torch.zeros(3)

    assert len(dict(mmdit(Mmdit()))) > 40
    with pytest.raises(CorruptModel, match=r"1 tensors that Stable Diffusion 3's does not have.*joint_blocks\.0\.new"):
        load(write_sd3(tmp_path / "odd.safetensors", change=add))
