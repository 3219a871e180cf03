import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safelight.errors import CorruptModel, UnsafeFile
from safelight.models.networks.components import load_weights
from safelight.models.weights.safetensors_file import read_header, weight_files

STEM = "model"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / f"{STEM}.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, path)
    return path


def raw(path: Path, header: bytes, body: bytes = b"", *, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def test_a_good_file_is_read(good: Path) -> None:
    assert set(read_header(good).tensors) == {"a", "b"}
    weights = load_weights(good.parent, STEM).tensors
    assert torch.equal(weights["a"], torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_by_another_name_is_refused_unopened(good: Path, protocol: int) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, ("1/0",))

    good.write_bytes(pickle.dumps(Bomb(), protocol=protocol) + bytes(1000))
    # Protocols 0 and 1 have no mark of their own; they are no safetensors either.
    with pytest.raises(UnsafeFile if protocol >= 2 else CorruptModel, match=r"only safetensors|not a safetensors"):
        load_weights(good.parent, STEM)


def test_files_of_torch_save_are_refused_unopened(good: Path) -> None:
    torch.save({"a": torch.ones(2)}, good)
    assert zipfile.is_zipfile(good)
    with pytest.raises(UnsafeFile, match="can run code"):
        load_weights(good.parent, STEM)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(tmp_path: Path, length: int) -> None:
    """The first bytes of a pickle are also the lengths 640, 896, ...: one file in two thousand has one."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    path = raw(tmp_path / f"{STEM}.safetensors", header, bytes(4))
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    assert load_weights(tmp_path, STEM).tensors["a"].tolist() == [0.0]


@pytest.mark.parametrize("kept", [0, 7, 8, 20, -1])
def test_a_file_cut_off_anywhere_is_refused(good: Path, kept: int) -> None:
    good.write_bytes(good.read_bytes()[:kept])
    with pytest.raises(CorruptModel, match=r"cut off.*bytes"):
        load_weights(good.parent, STEM)


def test_a_file_with_something_behind_it_is_refused(good: Path) -> None:
    good.write_bytes(good.read_bytes() + b"more")
    with pytest.raises(CorruptModel, match="longer than it should be"):
        load_weights(good.parent, STEM)


@pytest.mark.parametrize("length", [2**63, 2**40, 0, 1])
def test_a_header_of_no_possible_length_is_refused_unread(tmp_path: Path, length: int) -> None:
    raw(tmp_path / f"{STEM}.safetensors", b"{}" * 100, length=length)
    with pytest.raises(CorruptModel, match="not a safetensors file"):
        load_weights(tmp_path, STEM)


@pytest.mark.parametrize(
    "header",
    [
        b"{{{{",
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe\xfd\xfc",
        b"[" * 50_000,
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": ["x", "y"]}}',
        b'{"a": {"data_offsets": [0, 1e999]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}',
    ],
)
def test_a_garbled_header_is_refused(tmp_path: Path, header: bytes) -> None:
    path = raw(tmp_path / f"{STEM}.safetensors", header, bytes(4))
    with pytest.raises(CorruptModel, match=path.name):
        load_weights(tmp_path, STEM)


def test_a_folder_by_the_name_of_a_file_is_no_file(tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.safetensors").mkdir()
    with pytest.raises(CorruptModel, match="has no"):
        load_weights(tmp_path, STEM)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", "missing.safetensors", "a\0b", 7])
def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CorruptModel, match="not a file beside it"):
        load_weights(folder, STEM)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 7}', "[" * 100_000])
def test_a_garbled_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptModel, match="not a shard index"):
        load_weights(tmp_path, STEM)


def test_full_precision_is_taken_before_half(good: Path) -> None:
    save_file({"a": torch.zeros(1)}, good.with_name(f"{STEM}.fp16.safetensors"))
    assert weight_files(good.parent, STEM) == [good]


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl"])
def test_pickles_alone_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"{STEM}{suffix}").write_bytes(b"")
    with pytest.raises(UnsafeFile, match=rf"model\{suffix}"):
        load_weights(tmp_path, STEM)


def entry(begin: int, end: int, *, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 16)}, "b overlaps another"),
        ({"a": entry(0, 4), "b": entry(8, 16)}, "b leaves a gap"),
        ({"a": entry(4, 16)}, "a leaves a gap"),
        ({"a": entry(0, 32)}, "cut off"),
        ({"a": entry(0, 16, shape=[5])}, r"a of shape \[5\] has 16 bytes"),
        ({"a": entry(0, 16, shape=[2**40, 2**40])}, "has 16 bytes of F32"),
        ({"a": entry(0, 16, dtype="F13")}, "number format 'F13'"),
        ({"a": entry(0, 16) | {"shape": [True] * 4}}, "not a safetensors header"),
        ({"__metadata__": {"a": 1}, "a": entry(0, 16)}, "not a safetensors header"),
    ],
)
def test_a_header_with_wrong_tensor_positions_is_refused(
    tmp_path: Path, tensors: dict[str, object], message: str
) -> None:
    path = raw(tmp_path / "x.safetensors", json.dumps(tensors).encode(), bytes(16))
    with pytest.raises(CorruptModel, match=message):
        read_header(path)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry(0, 16))
    path = raw(tmp_path / "x.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), bytes(16))
    with pytest.raises(CorruptModel, match="twice"):
        read_header(path)


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90 * 2**20))
        file.truncate(100 * 2**20)  # a hole: no disk is used
    with pytest.raises(CorruptModel, match=r"header of 90 MiB; no model needs more than 32"):
        read_header(path)
