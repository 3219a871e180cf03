from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.fakes import draw, spec_for
from tests.models.ldm_files import KINDS, write
from tests.tiny_models import load

from safelight.errors import UnsupportedOption
from safelight.models.checkpoints.families import describe
from safelight.models.networks.export import export_single_file
from safelight.models.weights.safetensors_file import read_header
from safelight.models.weights.tensor_file import TensorFile


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_file_written_again_has_the_same_tensors(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "given.safetensors", kind)
    about = describe(path)
    again = export_single_file(about, tmp_path / "again.safetensors", dtype=torch.float32, title="x")
    before, after = TensorFile(path), TensorFile(again)
    # What is never read (a scale, the last layer and the projection of Stable Diffusion 2) need not come back.
    unread = {name for name in before if name.endswith(("logit_scale", "text_projection")) or ".resblocks.2." in name}
    kept = before.keys() if kind != "sd2" else before.keys() - unread
    assert {name for name in kept if not name.endswith("logit_scale")} <= after.keys()
    assert all(torch.equal(before[name], after[name]) for name in after if name in kept)
    assert describe(again).unet == about.unet
    assert describe(again).prediction == about.prediction


def test_half_precision_is_written_by_default(tmp_path: Path) -> None:
    about = describe(write(tmp_path / "given.safetensors", "sd1"))
    out = export_single_file(about, tmp_path / "half.safetensors", dtype=torch.float16, title="x")
    header = read_header(out)
    assert {entry.dtype for entry in header.tensors.values()} == {"F16"}
    assert header.metadata["modelspec.architecture"] == "stable-diffusion-v1"


def test_a_file_written_again_draws_the_same_picture(tmp_path: Path) -> None:
    about = describe(write(tmp_path / "given.safetensors", "sd1"))
    one = load(about.path)
    out = export_single_file(about, tmp_path / "out.safetensors", dtype=torch.float32, title="x")
    spec = spec_for(one, width=64, height=64, steps=2)
    assert draw(spec, replace(load(out), digest=one.digest)).tobytes() == draw(spec, one).tobytes()


@pytest.mark.parametrize(
    ("kind", "named"), [("sd1", "norm_num_groups|attention_head_dim"), ("lcm", "cond_proj|time_cond")]
)
def test_settings_the_layout_cannot_express_are_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, named: str
) -> None:
    with pytest.raises(UnsupportedOption, match=named):
        export_single_file(describe(checkpoint(kind)), tmp_path / "x.safetensors", dtype=torch.float16, title="x")
    assert not (tmp_path / "x.safetensors").exists()
