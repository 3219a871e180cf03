"""Hints by the names of their preprocessors, and depth by a small network of each kind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.control_files import colours_picture
from tests.tiny_models import CPU, seeded

from safelight.errors import CorruptModel, InvalidRequest, UnknownControl, UnsafeFile, UnsupportedOption
from safelight.imaging import outlines
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.models.vision.preprocessors import PREPROCESSORS, Preprocessors


def write_dpt(folder: Path, **said: Any) -> Path:
    from transformers import DPTConfig, DPTForDepthEstimation

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    network = seeded(21, lambda: DPTForDepthEstimation(config))
    network.head.head[-2].bias.data += 20  # its last layer cuts off what is below 0, here all of it
    network.save_pretrained(folder)
    if said:
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def write_depth_anything(folder: Path) -> Path:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        patch_size=14,
    )
    network = seeded(22, lambda: DepthAnythingForDepthEstimation(config))
    network.head.conv3.bias.data += 20
    network.save_pretrained(folder)
    return folder


def preprocessors(models: Path) -> Preprocessors:
    return Preprocessors(ControlFolder(Catalogue(models)), lambda: CPU)


def test_every_name_makes_a_hint_as_large_as_the_picture(tmp_path: Path) -> None:
    picture, make = colours_picture(1, 40, 24), preprocessors(tmp_path).make_hint
    for name in PREPROCESSORS.keys() - {"depth"}:
        assert make(name, picture).size == (40, 24)
    assert make("none", picture).tobytes() == make("tile", picture).tobytes() == picture.tobytes()
    assert make("canny", picture, thresholds=(60, 20)).tobytes() == outlines.canny(picture, (20, 60)).tobytes()


def test_invalid_names_and_thresholds_are_refused(tmp_path: Path) -> None:
    make = preprocessors(tmp_path).make_hint
    with pytest.raises(InvalidRequest, match="did you mean 'soft-edge'"):
        make("softedge", colours_picture())
    with pytest.raises(InvalidRequest, match="thresholds are for canny"):
        make("scribble", colours_picture(), thresholds=(1, 2))
    with pytest.raises(UnknownControl, match="there are none in SAFELIGHT_HOME/depth-models"):
        make("depth", colours_picture())


@pytest.mark.parametrize("write", [write_dpt, write_depth_anything])
def test_depth_equals_the_output_of_transformers(write: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "depth-models" / "net")
    picture = colours_picture(1, 40, 24)
    hint = np.asarray(preprocessors(tmp_path).make_hint("depth", picture).convert("L"), dtype=float)
    assert (hint.min(), hint.max()) == (0, 255)

    from transformers import AutoModelForDepthEstimation

    network = AutoModelForDepthEstimation.from_pretrained(folder)
    side = 32 if write is write_dpt else 28
    pixels = torch.tensor(np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)) / 127.5 - 1).float()
    with torch.no_grad():
        said = network(pixels.permute(2, 0, 1)[None]).predicted_depth
    large = torch.nn.functional.interpolate(said[:, None], size=(24, 40), mode="bicubic")[0, 0].numpy()
    expected = (large - large.min()) / (large.max() - large.min()) * 255
    assert np.abs(hint - expected).max() <= 1


def test_depth_uses_its_own_preprocessing_settings(tmp_path: Path) -> None:
    write_dpt(
        tmp_path / "depth-models" / "a", size={"width": 64, "height": 64}, image_mean=[0.1] * 3, image_std=[0.2] * 3
    )
    make = preprocessors(tmp_path)
    make.make_hint("depth", colours_picture())
    [found] = make.depths.values()
    assert (found.size, found.mean, found.std) == ((64, 64), (0.1, 0.1, 0.1), (0.2, 0.2, 0.2))
    write_dpt(tmp_path / "depth-models" / "b")
    with pytest.raises(InvalidRequest, match="name one, such as depth/a"):
        make.make_hint("depth", colours_picture())
    assert make.make_hint("depth/b", colours_picture()).size == colours_picture().size


def test_folders_that_are_no_depth_models_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "depth-models" / "net"
    folder.mkdir(parents=True)
    make = preprocessors(tmp_path).make_hint
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedOption, match="is a bert"):
        make("depth", colours_picture())
    (folder / "config.json").write_text('{"model_type": "dpt"}')
    with pytest.raises(CorruptModel, match=r"no model\.safetensors"):
        make("depth", colours_picture())
    (folder / "model.bin").write_bytes(b"")
    with pytest.raises(UnsafeFile):
        make("depth", colours_picture())
