from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.errors import StorageFailed
from safelight.models.weights.tensor_file import TensorFile, write_tensors


def test_every_dtype_survives_a_round_trip(tmp_path: Path) -> None:
    formats = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in formats}
    tensors |= {"a number": torch.tensor(3.0), "nothing": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = TensorFile(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_a_released_tensor_can_be_read_again(tmp_path: Path) -> None:
    save_file({"a": torch.arange(100_000.0), "b": torch.ones(100_000)}, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    view = file["a"]
    file.release(view)
    file.release(torch.ones(5))  # of no concern to it
    assert torch.equal(view, torch.arange(100_000.0))
    assert torch.equal(file["b"], torch.ones(100_000))


def test_writing_into_a_view_does_not_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(10)}, path)
    TensorFile(path)["a"].zero_()
    assert torch.equal(load_file(path)["a"], torch.ones(10))


def test_written_files_are_read_by_the_reference_implementation(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.safetensors"
    turned = torch.arange(6.0).view(2, 3).T
    plan = {"a": (torch.float16, (3, 2)), "b": (torch.float32, ())}
    write_tensors(path, plan, [("a", turned), ("b", torch.tensor(2.0))], metadata={"who": "é"})
    found = load_file(path)
    assert torch.equal(found["a"], turned.half())
    assert found["b"] == 2


def test_an_unfinished_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed, match="cannot write"):
        write_tensors(tmp_path / "file" / "x.safetensors", {}, [], metadata={})
    with pytest.raises(AssertionError):
        write_tensors(tmp_path / "x.safetensors", {"a": (torch.float32, (2,))}, [("a", torch.ones(3))], metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
