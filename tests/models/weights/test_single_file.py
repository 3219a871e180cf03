"""Single-file checkpoints against diffusers' own converters, and against the configurations of the real families."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.models.ldm_files import KINDS, Ldm, checkpoint, write
from tests.tiny_models import INIT, load, start_picture
from torch import Tensor

from safelight.errors import CorruptModel, SafelightError, UnsupportedOption
from safelight.models.checkpoints.digest import digest_model, file_sum
from safelight.models.checkpoints.families import describe
from safelight.models.networks.load import Model
from safelight.models.weights.identify import Identity
from safelight.models.weights.safetensors_file import Entry, Header
from safelight.models.weights.single_file import derive
from safelight.spec.parts import PinnedRefiner

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")

Files = Callable[[str], Path]


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A tiny single file by kind. Not to be written to."""
    home = tmp_path_factory.mktemp("singles")
    return cache(lambda kind: write(home / f"{kind}.safetensors", kind))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_network_has_the_tensors_that_diffusers_converts(single: Files, kind: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    ours = load(single(kind))
    theirs = convert_ldm_unet_checkpoint(load_file(single(kind)), dict(ours.description.unet))
    assert_same(ours.unet.state_dict(), theirs)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_autoencoder_has_the_tensors_that_diffusers_converts(single: Files, kind: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    ours = load(single(kind))
    theirs = convert_ldm_vae_checkpoint(load_file(single(kind)), dict(ours.description.vae))
    assert_same(ours.vae.network.state_dict(), theirs)


@pytest.mark.parametrize("kind", ["sd2", "sdxl", "sdxl-refiner"])
def test_open_clip_has_the_tensors_that_diffusers_converts(single: Files, kind: str) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    network = load(single(kind)).text_encoders[-1].network
    prefix = KINDS[kind].open_clip[0]  # type: ignore[index]
    theirs = convert_open_clip_checkpoint(network, load_file(single(kind)), prefix=prefix)
    if kind == "sd2":
        # diffusers leaves the last layer out by the number it has in the real model, which has 24.
        theirs = {name: tensor for name, tensor in theirs.items() if ".layers.2." not in name}
    assert_same(network.state_dict(), theirs)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_clip_has_the_tensors_that_diffusers_converts(single: Files, kind: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    network = load(single(kind)).text_encoders[0].network
    assert_same(network.state_dict(), convert_ldm_clip_checkpoint(load_file(single(kind))))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Bit by bit: conversion is renaming, cutting and turning."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in theirs.items()}
    mine = {name.removeprefix("text_model."): tensor for name, tensor in ours.items()}
    assert mine.keys() == bare.keys()
    assert all(torch.equal(mine[name], bare[name]) for name in mine)


REAL = {
    "sd1": Ldm(
        channels=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        context=768,
        layers=2,
        vae=(128, 256, 512, 512),
        clip=("cond_stage_model.transformer.", 768),
        text_layers=12,
    ),
    "sd2": Ldm(
        channels=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        context=1024,
        layers=2,
        linear=True,
        vae=(128, 256, 512, 512),
        open_clip=("cond_stage_model.model.", 1024),
        text_layers=24,
    ),
    "sdxl": Ldm(
        channels=(320, 640, 1280),
        depths=(0, 2, 10),
        middle=10,
        context=2048,
        layers=2,
        linear=True,
        label=2816,
        vae=(128, 256, 512, 512),
        clip=("conditioner.embedders.0.transformer.", 768),
        open_clip=("conditioner.embedders.1.model.", 1280),
        text_layers=32,
    ),
    "sdxl-refiner": Ldm(
        channels=(384, 768, 1536, 1536),
        depths=(0, 4, 4, 0),
        middle=4,
        context=1280,
        layers=2,
        linear=True,
        label=2560,
        vae=(128, 256, 512, 512),
        open_clip=("conditioner.embedders.0.model.", 1280),
        text_layers=32,
    ),
}
"""The original code's configurations of the published checkpoints (v1-inference.yaml, v2-inference-v.yaml,
sd_xl_base.yaml, sd_xl_refiner.yaml). SDXL's two encoders have 12 and 32 layers; here both have 32."""
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": {
            "block_out_channels": [320, 640, 1280, 1280],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "layers_per_block": 2,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "use_linear_projection": False,
            "sample_size": 64,
        },
        "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "scaling_factor": 0.18215},
        "text_encoder": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
        },
        "scheduler": {"_class_name": "PNDMScheduler", "beta_end": 0.012, "prediction_type": "epsilon"},
    },
    "sd2": {
        "unet": {
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
            "sample_size": 96,
        },
        "text_encoder": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 23, "hidden_act": "gelu"},
        "scheduler": {"prediction_type": "v_prediction"},
    },
    "sdxl": {
        "unet": {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
        },
        "vae": {"scaling_factor": 0.13025},
        "text_encoder_2": {
            "hidden_size": 1280,
            "num_attention_heads": 20,
            "projection_dim": 1280,
            "num_hidden_layers": 32,
        },
        "scheduler": {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"},
    },
    "sdxl-refiner": {
        "unet": {
            "block_out_channels": [384, 768, 1536, 1536],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "transformer_layers_per_block": [1, 4, 4, 4],
            "attention_head_dim": [6, 12, 24, 24],
            "cross_attention_dim": 1280,
            "projection_class_embeddings_input_dim": 2560,
            "sample_size": 128,
        },
        "vae": {"scaling_factor": 0.13025},
        "text_encoder_2": {"hidden_size": 1280, "projection_dim": 1280, "num_hidden_layers": 32},
        "scheduler": {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"},
    },
}
"""What the published diffusers folders of the same checkpoints say."""


@pytest.mark.parametrize("family", sorted(REAL))
def test_the_published_checkpoints_are_described_as_they_were_published(family: Any) -> None:
    header = header_of(REAL[family])
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    what = Identity(kind="checkpoint", base=family, prediction=prediction)  # type: ignore[arg-type]
    derived = dict(derive(header, what))
    for part, expected in PUBLISHED[family].items():
        assert {name: derived[part][name] for name in expected} == expected


def header_of(about: Ldm, **metadata: str) -> Header:
    return Header({name: Entry("F16", shape, 0, 0) for name, shape in checkpoint(about)}, metadata)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_nearly_the_same(single: Files, tmp_path: Path, dtype: torch.dtype) -> None:
    whole = load(single("sd1"))
    half = load(write(tmp_path / "half.safetensors", "sd1", dtype=dtype))
    assert {parameter.dtype for parameter in half.unet.parameters()} == {torch.float32}
    # 11 and 8 bits of each weight are left; what is wrongly converted has nothing in common with the other picture.
    assert psnr(picture(half), picture(whole)) > (30 if dtype == torch.float16 else 20)


def picture(model: Model) -> Any:
    return draw(spec_for(replace(model, digest="0" * 64), width=64, height=64, steps=3), model)


def test_a_file_that_edits_follows_instructions(single: Files) -> None:
    ours = load(single("edit"))
    assert (ours.description.reads, ours.description.unet["in_channels"]) == ("instructions", 8)
    wishes = {"init": INIT, "prompt": "make it blue", "width": 64, "height": 64, "guidance": 4.0}
    images = [draw(spec_for(ours, **wishes, image_guidance=scale), ours, {INIT: start_picture()}) for scale in (1, 3)]
    assert psnr(*images) < 40


def test_moving_averages_are_ignored(single: Files, tmp_path: Path) -> None:
    def add_averages(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.diffusion_model.")]:
            flat = "model_ema." + name.removeprefix("model.").replace(".", "")
            tensors[flat] = torch.zeros_like(tensors[name])
        tensors["model_ema.decay"] = torch.tensor(0.9999)

    both = load(write(tmp_path / "both.safetensors", "sd1", change=add_averages))
    assert_same(both.unet.state_dict(), load(single("sd1")).unet.state_dict())


def test_tensors_of_training_are_ignored(tmp_path: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["first_stage_model.loss.logvar"] = torch.zeros(1)
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        tensors["alphas_cumprod"] = torch.ones(1000)

    load(write(tmp_path / "old.safetensors", "sd1", change=add))


def test_the_earliest_files_leave_out_a_prefix(single: Files, tmp_path: Path) -> None:
    def shorten(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".text_model." in name]:
            tensors[name.replace(".text_model.", ".")] = tensors.pop(name)

    early = load(write(tmp_path / "early.safetensors", "sd1", change=shorten))
    assert_same(early.text_encoders[0].network.state_dict(), load(single("sd1")).text_encoders[0].network.state_dict())


def test_a_file_is_named_by_its_sha256_whatever_it_is_called(single: Files, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(single("sd1").read_bytes())
    assert digest_model(describe(copy)) == digest_model(describe(single("sd1"))) == file_sum(copy)


def test_safelights_settings_beside_a_file_are_used_and_part_of_its_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "base.safetensors", "sd2")
    assert describe(path).prediction == "v_prediction"
    before = digest_model(describe(path))
    path.with_suffix(".safelight.json").write_text(
        '{"scheduler": {"prediction_type": "epsilon"}, "defaults": {"steps": 7}}'
    )
    about = describe(path)
    assert (about.prediction, about.defaults.steps) == ("epsilon", 7)
    assert digest_model(about) != before


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        ("sd2", {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ("sdxl", {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("sd1", {}, "epsilon"),
    ],
)
def test_the_metadata_says_what_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: dict[str, str], expected: str
) -> None:
    monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], metadata=said))
    assert describe(write(tmp_path / "x.safetensors", kind)).prediction == expected


def test_an_empty_tensor_says_that_xl_predicts_v(tmp_path: Path) -> None:
    def mark(tensors: dict[str, Tensor]) -> None:
        tensors |= {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}

    about = describe(write(tmp_path / "v.safetensors", "sdxl", change=mark))
    assert about.prediction == "v_prediction"
    assert about.scheduler["rescale_betas_zero_snr"]
    assert about.defaults.sampler == "DDIM"


def drop(start: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(start)]:
            del tensors[name]

    return change


def put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("first_stage_model."), r"lacks an autoencoder.*includes it"),
        (drop("cond_stage_model."), r"checkpoint of an unknown family"),
        (drop("model.diffusion_model.middle_block.0."), r"lacks \d+ tensors.*mid_block"),
        (drop("model.diffusion_model.input_blocks.0."), r"lacks model\.diffusion_model\.input_blocks"),
        (drop("first_stage_model.decoder.up."), r"lacks \d+ tensors"),
        (put("model.diffusion_model.input_blocks.0.0.weight", 64, 5, 3, 3), r"5 input channels; supported: 4, 8 and 9"),
        (put("model.diffusion_model.out.2.weight", 4, 64, 1, 1), r"conv_out.weight is \(4, 64, 1, 1\) in the file"),
        (put("model.diffusion_model.input_blocks.0.0.weight", 64), r"of 4 dimensions: it is \(64,\)"),
        (put("model.diffusion_model.new_idea.weight", 3), r"1 tensors that Stable Diffusion's does not have.*new_idea"),
        (put("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", 100, 64), "CLIP's has 49408"),
        (put("edm_mean", 4), r"Playground 2\.5"),
    ],
)  # fmt: skip
def test_problems_of_a_file_are_reported(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    path = write(tmp_path / "broken.safetensors", "sd1", change=change)
    with pytest.raises(SafelightError, match=message) as caught:
        load(path)
    assert isinstance(caught.value, CorruptModel | UnsupportedOption)
    assert "broken.safetensors" in str(caught.value)


def test_a_refiner_in_one_file_takes_over_from_a_base_in_one_file(single: Files) -> None:
    base, refiner = load(single("sdxl")), load(single("sdxl-refiner"))
    assert refiner.description.family.score_conditioned
    spec = spec_for(base, width=64, height=64, steps=5)
    use = PinnedRefiner(model="refiner", digest=refiner.digest, switch=0.3)
    with SteppedEngine() as job_service:
        alone = job_service.add(spec, base)
        refined = job_service.add(spec.model_copy(update={"refiner": use}), base, refiner=refiner)
        job_service.finish()
        assert psnr(job_service.image(alone), job_service.image(refined)) < 40
