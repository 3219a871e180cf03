"""Networks in files of their own, joined with the rest of a folder: against diffusers' converters, and drawn."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fakes import draw, spec_for
from tests.models.ldm_files import filled, flux, under, write, write_sd3
from tests.tiny_models import load
from torch import Tensor

from safelight.errors import CorruptModel, InvalidRequest, StorageFailed, UnsupportedOption
from safelight.models.checkpoints.families import describe
from safelight.models.networks import join as module
from safelight.models.networks.join import join
from safelight.models.weights.identify import UNET
from safelight.models.weights.ldm_weights import to_ldm
from safelight.models.weights.mmdit_names import flux_layout, from_original

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")

Checkpoint = Callable[[str], Path]
ROWS = 3072
"""The width that diffusers' converter takes every Flux for."""


TINY_FLUX: dict[str, Any] = {"width": 32, "joint": 32, "pooled": 32, "head": 16}
"""As `tiny_models.write_flux` makes it."""


def write_flux(path: Path, *, prefix: str = "", **wishes: Any) -> Path:
    save_file(filled(under(prefix, flux(**TINY_FLUX | wishes))), path)
    return path


def network_of(folder: Path, part: str = "transformer") -> dict[str, Tensor]:
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_flux_has_the_tensors_that_diffusers_converts() -> None:
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    given = filled(flux(width=ROWS, joint=1, pooled=1, head=128, blocks=1, columns=1))
    config = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24, "attention_head_dim": 128}
    ours = from_original(given, flux_layout(config))
    assert same(ours, convert_flux_transformer_checkpoint_to_diffusers(dict(given)))


@pytest.mark.parametrize("prefix", ["", UNET])
def test_a_flux_file_is_drawn_with_the_rest_of_a_folder(prefix: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint("flux")
    join(write_flux(tmp_path / "brand.safetensors", prefix=prefix), describe(base), tmp_path / "brand")
    theirs, ours = load(base), load(tmp_path / "brand")
    assert ours.digest != theirs.digest
    same_words = (
        spec_for(ours, prompt="a cat", sampler="Default", steps=2),
        spec_for(theirs, prompt="a cat", sampler="Default", steps=2),
    )
    assert draw(same_words[0], ours).tobytes() != draw(same_words[1], theirs).tobytes()
    assert same(ours.vae.network.state_dict(), theirs.vae.network.state_dict())
    assert (tmp_path / "brand/vae/config.json").samefile(base / "vae/config.json"), "linked, not copied"


def test_joining_the_bases_own_network_gives_the_base_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint("flux")
    save_file(network_of(base), tmp_path / "same.safetensors")
    join(tmp_path / "same.safetensors", describe(base), tmp_path / "same")
    assert same(network_of(tmp_path / "same"), network_of(base))
    models = load(base), load(tmp_path / "same")
    pictures = [draw(spec_for(model, prompt="a cat", sampler="Default", steps=2), model).tobytes() for model in models]
    assert pictures[0] == pictures[1]


def test_stable_diffusion_3_survives_a_round_trip_through_a_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    whole = write_sd3(tmp_path / "sd3.safetensors")
    base = shutil.copytree(checkpoint("sd3"), tmp_path / "base")
    load(whole).unet.save_pretrained(base / "transformer")
    bare = {name.removeprefix(UNET): tensor for name, tensor in load_file(whole).items() if name.startswith(UNET)}
    save_file(bare, tmp_path / "bare.safetensors")
    join(tmp_path / "bare.safetensors", describe(base), tmp_path / "out")
    assert same(network_of(tmp_path / "out"), network_of(base))


@pytest.mark.parametrize("prefix", ["", UNET])
def test_a_unet_alone_is_joined_too(prefix: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = describe(checkpoint("sdxl"))
    network = network_of(base.path, "unet")
    stacked = to_ldm(network, "unet", family="sdxl", config=base.unet)
    given = {prefix + name.removeprefix(UNET): tensor for name, (tensor,) in stacked}
    save_file(given, tmp_path / "bare.safetensors")
    join(tmp_path / "bare.safetensors", base, tmp_path / "out")
    assert same(network_of(tmp_path / "out", "unet"), network)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_a_file_with_only_a_network_is_refused_with_the_command_that_joins_it(
    kind: str, checkpoint: Checkpoint
) -> None:
    about = describe(checkpoint(kind))
    path = about.path / about.family.network / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UnsupportedOption, match=r"holds the network alone.*safelight models join .* FOLDER"):
        describe(path)


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("per_row", [False, True], ids=["one scale", "a scale a row"])
def test_scaled_eight_bit_weights_are_multiplied_back(
    ending: str, per_row: bool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    whole = load_file(write_flux(tmp_path / "whole.safetensors"))
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in whole.items():
        if tensor.ndim < 2:
            scaled[name] = tensor
            continue
        most = tensor.abs().amax(dim=1) if per_row else tensor.abs().max()
        scale = most / 448  # the largest number of the format
        module_name = name.removesuffix(".weight")
        scaled[f"{module_name}.weight"] = (tensor / scale.view(-1, 1)).to(torch.float8_e4m3fn)
        scaled[f"{module_name}.{ending}"] = scale
        scaled[f"{module_name}.scale_input"] = torch.ones(())
    save_file(scaled, tmp_path / "scaled.safetensors")
    base = describe(checkpoint("flux"))
    for name in ("whole", "scaled"):
        join(tmp_path / f"{name}.safetensors", base, tmp_path / name)
    exact, rounded = network_of(tmp_path / "whole"), network_of(tmp_path / "scaled")
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        assert (rounded[name].float() - tensor).abs().max() <= tensor.abs().max() / 16  # three bits of mantissa


def test_a_scale_that_fits_nothing_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = load_file(write_flux(tmp_path / "brand.safetensors"))
    save_file(tensors | {"img_in.scale_weight": torch.ones(5)}, tmp_path / "odd.safetensors")
    with pytest.raises(CorruptModel, match=r"scales neither img_in\.weight nor its rows"):
        join(tmp_path / "odd.safetensors", describe(checkpoint("flux")), tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "wishes", "error", "words"),
    [
        ("schnell", {}, CorruptModel, "has 4 more tensors.*guidance_embedder"),
        ("flux", {"guidance": False}, CorruptModel, "lacks 4 of its tensors.*guidance_embedder"),
        ("flux", {"joint": 48}, CorruptModel, r"context_embedder.weight of shape \(32, 48\), not \(32, 32\)"),
        ("flux", {"blocks": 3}, CorruptModel, "that Flux's does not have, the first is double_blocks.2"),
        ("sd3", {}, UnsupportedOption, "checkpoint of Flux, and .* is Stable Diffusion 3"),
    ],
)
def test_another_network_than_the_bases_is_refused_and_leaves_nothing(
    kind: str, wishes: dict[str, Any], error: type[Exception], words: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    given = write_flux(tmp_path / "brand.safetensors", **wishes)
    with pytest.raises(error, match=words):
        join(given, describe(checkpoint(kind)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["brand.safetensors"]


def test_a_file_is_no_base(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.safetensors", "sd1")
    with pytest.raises(UnsupportedOption, match="must come from a diffusers folder"):
        join(whole, describe(whole), tmp_path / "out")


def test_a_full_disk_leaves_no_files_and_an_existing_folder_is_not_overwritten(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, base = write_flux(tmp_path / "brand.safetensors"), describe(checkpoint("flux"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "place", full)
        with pytest.raises(StorageFailed, match="No space left"):
            join(given, base, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["brand.safetensors"]
    stale = tmp_path / ".out.part"  # of a run that was killed
    stale.mkdir()
    (stale / "junk").touch()
    join(given, base, tmp_path / "out")
    assert not stale.exists()
    assert not (tmp_path / "out" / "junk").exists()
    with pytest.raises(InvalidRequest, match="exists already"):
        join(given, base, tmp_path / "out")


def test_shards_are_taken_with_their_index(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = shutil.copytree(checkpoint("flux"), tmp_path / "base")
    whole = base / "text_encoder_2" / "model.safetensors"
    tensors = sorted(load_file(whole).items())
    whole.unlink()
    shards = {"model-1.safetensors": dict(tensors[:3]), "model-2.safetensors": dict(tensors[3:])}
    for name, some in shards.items():
        save_file(some, whole.with_name(name), metadata={"format": "pt"})
    index = {"weight_map": {tensor: name for name, some in shards.items() for tensor in some}}
    whole.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    join(write_flux(tmp_path / "brand.safetensors"), describe(base), tmp_path / "out")
    assert load(tmp_path / "out").t5 is not None
