import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fakes import draw, psnr, spec_for
from tests.tiny_models import CPU, load

from safelight.errors import CorruptModel, SafelightError, UnsafeFile
from safelight.models.checkpoints.families import describe
from safelight.models.networks.load import Model, load_model
from safelight.models.networks.placement import Placement

Checkpoints = Callable[[str], Path]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def rename(path: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): tensor.clone() for name, tensor in load_file(path).items()}, path)


def same_picture(one: Model, other: Model) -> bool:
    """The digest differs where the files do; all else must not."""
    spec = spec_for(one)
    return draw(spec, one).tobytes() == draw(spec, replace(other, digest=one.digest)).tobytes()


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "inpaint", "lcm"])
def test_loaded_weights_equal_those_that_diffusers_loads(
    checkpoint: Checkpoints, model: Callable[[str], Model], kind: str
) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    theirs = UNet2DConditionModel.from_pretrained(checkpoint(kind) / "unet").state_dict()
    ours = model(kind).unet.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_networks_are_frozen_and_in_evaluation(model: Callable[[str], Model]) -> None:
    sdxl = model("sdxl")
    for network in (sdxl.unet, sdxl.vae.network, *(encoder.network for encoder in sdxl.text_encoders)):
        assert not network.training
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in network.parameters())
        assert not any(buffer.is_meta for buffer in network.buffers())


def test_half_precision_files_become_float32_on_a_cpu(folder: Path, model: Callable[[str], Model]) -> None:
    for name in (UNET, VAE, TEXT):
        save_file({name: tensor.half() for name, tensor in load_file(folder / name).items()}, folder / name)
    half = load(folder)
    assert {parameter.dtype for parameter in half.unet.parameters()} == {torch.float32}
    spec = spec_for(half)
    # Weights with 11 bits: 1 part in 2000, a few times over.
    assert psnr(draw(spec, half), draw(spec, model("sd1"))) > 30


def test_a_placement_in_half_precision_is_kept(folder: Path) -> None:
    description = describe(folder)
    half = load_model(
        description, name="half", digest="0" * 64, placement=Placement(torch.device("cpu"), torch.bfloat16)
    )
    for network in (half.unet, half.vae.network, half.text_encoders[0].network):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_an_fp16_variant_is_read_if_it_is_the_only_one(folder: Path, model: Callable[[str], Model]) -> None:
    for name in (UNET, VAE, TEXT):
        path = folder / name
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    assert same_picture(model("sd1"), load(folder))


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_put_together(folder: Path, model: Callable[[str], Model], variant: str) -> None:
    path = folder / UNET
    tensors = list(load_file(path).items())
    names = [f"{path.stem}{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    for name, half in zip(names, halves, strict=True):
        save_file(dict(half), path.with_name(name))
    weight_map = {tensor: name for name, half in zip(names, halves, strict=True) for tensor, _ in half}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    path.with_name(f"{path.stem}.safetensors.index{variant}.json").write_text(json.dumps(index))
    path.unlink()
    assert same_picture(model("sd1"), load(folder))


def test_names_of_older_libraries_are_known(folder: Path, model: Callable[[str], Model]) -> None:
    """CLIP's prefix and position numbers as transformers 4 wrote them, the VAE's attention as diffusers 0.12 did."""
    rename(folder / TEXT, lambda name: f"text_model.{name.removeprefix('text_model.')}")
    tensors = load_file(folder / TEXT)
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, folder / TEXT)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def renamed(name: str) -> str:
        return next((name.replace(new, before) for new, before in old.items() if new in name), name)

    before = set(load_file(folder / VAE))
    rename(folder / VAE, renamed)
    assert before - set(load_file(folder / VAE)), "the tiny autoencoder has attention to rename"
    assert same_picture(model("sd1"), load(folder))


def test_names_of_a_text_encoder_without_prefix_are_known_too(folder: Path, model: Callable[[str], Model]) -> None:
    rename(folder / TEXT, lambda name: name.removeprefix("text_model."))
    assert same_picture(model("sd1"), load(folder))


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    del tensors["conv_in.weight"]
    save_file(tensors, folder / UNET)
    with pytest.raises(CorruptModel, match=r"unet lacks 1 tensors.*conv_in\.weight"):
        load(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    tensors["conv_in.weight"] = torch.zeros(8, 9, 3, 3)
    save_file(tensors, folder / UNET)
    with pytest.raises(CorruptModel, match=r"conv_in\.weight is \(8, 9, 3, 3\) in the file and \(8, 4, 3, 3\)"):
        load(folder)


def test_pickles_alone_are_refused(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeFile, match=r"diffusion_pytorch_model\.bin.*convert it to safetensors"):
        load(folder)


def test_missing_weights_are_reported(folder: Path) -> None:
    (folder / TEXT).unlink()
    with pytest.raises(CorruptModel, match=r"text_encoder has no model\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "text_encoder/config.json", "vae/config.json"]
)
@pytest.mark.parametrize("content", [None, "{", "[]", "nul\0", "[" * 100_000])
def test_a_damaged_configuration_is_named(folder: Path, name: str, content: str | None) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(CorruptModel, match=name):
        load(folder)


def test_every_error_of_a_damaged_checkpoint_is_a_safelight_error(folder: Path) -> None:
    """Whatever single file is gone or cut in half, loading says which in our words, or works without it."""
    said: dict[Path, str] = {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = path.read_bytes()
        for spoilt in (None, content[: len(content) // 2]):
            path.unlink() if spoilt is None else path.write_bytes(spoilt)
            with suppress(SafelightError):
                load_model(describe(folder), name="x", digest="0" * 64, placement=CPU)
                continue
            said[path] = message_of(folder)
        path.write_bytes(content)
    assert len(said) >= 8
    for path, message in said.items():
        assert path.name in message or path.parent.name in message


def message_of(folder: Path) -> str:
    with pytest.raises(SafelightError) as caught:
        load_model(describe(folder), name="x", digest="0" * 64, placement=CPU)
    return str(caught.value)
