"""Face models in ONNX; those of the tests are a pooling and a linear layer."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tests.control_files import colours_picture
from tests.face_files import face_picture, seen_in, write_face_model

from safelight.errors import CorruptModel, InvalidImage, MissingExtra, UnsupportedOption
from safelight.models.vision.face import load_face_model

needs = pytest.mark.needs("onnx", "onnxruntime")


@needs
def test_an_aligned_face_is_embedded_as_insightface_does(tmp_path: Path) -> None:
    """RGB from -1 to 1, and a vector of length 1; a crop of twice the side is the same face."""
    model = load_face_model(write_face_model(tmp_path / "face.onnx"))
    [said] = model.embed(face_picture()).numpy()
    np.testing.assert_allclose(said, seen_in(face_picture()), atol=1e-5)
    assert np.linalg.norm(said) == pytest.approx(1, abs=1e-6)
    [larger] = model.embed(face_picture().resize((224, 224))).numpy()
    assert said @ larger > 0.99
    [other] = model.embed(colours_picture(4, 112, 112)).numpy()
    assert said @ other < 0.9


@needs
@pytest.mark.parametrize("size", [(112, 224), (100, 100), (512, 512)], ids=str)
def test_a_picture_that_is_no_aligned_face_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    model = load_face_model(write_face_model(tmp_path / "face.onnx"))
    with pytest.raises(InvalidImage, match="square face, 112 pixels wide or a multiple"):
        model.embed(colours_picture(1, *size))


@needs
def test_files_that_are_no_face_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(CorruptModel, match="ONNX"):
        load_face_model(tmp_path / "text.onnx")
    with pytest.raises(UnsupportedOption, match="256"):
        load_face_model(write_face_model(tmp_path / "narrow.onnx", width=256))


@needs
def test_a_face_model_reads_no_file_but_its_own(tmp_path: Path) -> None:
    import onnx

    path = write_face_model(tmp_path / "face.onnx")
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=False,
    )
    assert (tmp_path / "weights.bin").is_file()
    with pytest.raises(CorruptModel):
        load_face_model(path)


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"safelight\[face\]"):
        load_face_model(tmp_path / "face.onnx")
