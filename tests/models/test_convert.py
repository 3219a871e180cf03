import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safelight.errors import CorruptModel, InvalidRequest, UnsafeFile
from safelight.models.convert import convert_pickle


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self.mark, "w"))


def test_tensors_come_out_of_what_trainers_wrap_them_in(tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    torch.save({"state_dict": weights, "global_step": 7}, tmp_path / "old.ckpt")
    header = convert_pickle(tmp_path / "old.ckpt", tmp_path / "new.safetensors")
    assert set(header.tensors) == {"a.weight", "b"}
    found = load_file(tmp_path / "new.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.safetensors", "old.ckpt"]


def test_an_embedding_of_automatic1111_becomes_one_tensor(tmp_path: Path) -> None:
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}}, tmp_path / "e.pt")
    assert set(convert_pickle(tmp_path / "e.pt", tmp_path / "e.safetensors").tensors) == {"emb_params"}


def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": {"a": torch.ones(1)}, "evil": Code(mark)}, tmp_path / "evil.ckpt")
    with pytest.raises(UnsafeFile, match=r"asks for .*open"):
        convert_pickle(tmp_path / "evil.ckpt", tmp_path / "out.safetensors")
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, pickle.dumps([1, 2])])
def test_what_holds_no_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises((CorruptModel, UnsafeFile), match=r"x\.pt"):
        convert_pickle(tmp_path / "x.pt", tmp_path / "x.safetensors")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(InvalidRequest, match="must not be there yet"):
        convert_pickle(tmp_path / "a.pt", tmp_path / "a.safetensors")
