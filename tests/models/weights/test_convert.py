import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.patience import PATIENCE_S

from safelight.errors import CorruptModel, InvalidRequest, UnsafeFile
from safelight.models.weights import convert as module
from safelight.models.weights.convert import PROGRAM, convert_pickle

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no such limits")


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self.mark, "w"))


def test_tensors_are_unwrapped_from_trainers_dictionaries(tmp_path: Path) -> None:
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
    with pytest.raises(UnsafeFile, match=r"needs .*open"):
        convert_pickle(tmp_path / "evil.ckpt", tmp_path / "out.safetensors")
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, pickle.dumps([1, 2])])
def test_a_pickle_without_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises((CorruptModel, UnsafeFile), match=r"x\.pt"):
        convert_pickle(tmp_path / "x.pt", tmp_path / "x.safetensors")


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(InvalidRequest, match="must not exist yet"):
        convert_pickle(tmp_path / "a.pt", tmp_path / "a.safetensors")


class Caller:
    """A pickle that rings somebody up when it is opened."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __reduce__(self) -> tuple[object, tuple[tuple[str, int]]]:
        return (socket.create_connection, (("127.0.0.1", self.port),))


def test_a_pickle_that_opens_a_connection_is_refused_without_connecting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        torch.save({"a": torch.ones(1), "b": Caller(listener.getsockname()[1])}, tmp_path / "spy.ckpt")
        with pytest.raises(UnsafeFile, match=r"needs socket\.create_connection"):
            convert_pickle(tmp_path / "spy.ckpt", tmp_path / "out.safetensors")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@ON_LINUX
def test_a_pickle_that_expands_to_a_terabyte_is_stopped(tmp_path: Path) -> None:
    """One number, said to be repeated: nothing that an unpickler would mind."""
    torch.save({"a": torch.zeros(1).expand(2**38)}, tmp_path / "bomb.ckpt")
    assert (tmp_path / "bomb.ckpt").stat().st_size < 10_000
    with pytest.raises(CorruptModel, match=r"bomb\.ckpt cannot be read: .*(memory|allocat)"):
        convert_pickle(tmp_path / "bomb.ckpt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def locked_down(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """What a program can do that has given up what unpickle.py gives up; `limits` is that file, as a module."""
    start = f"import importlib.util as u; s = u.spec_from_file_location('limits', {str(PROGRAM)!r}); "
    start += "limits = u.module_from_spec(s); s.loader.exec_module(limits); import sys\n"
    command = [sys.executable, "-I", "-c", start + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@ON_LINUX
def test_the_program_has_no_network_where_linux_lets_it_give_it_up() -> None:
    program = "import socket; limits.lock_down(2**33); socket.create_connection(('127.0.0.1', int(sys.argv[1])))"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = locked_down(program, listener.getsockname()[1])
    if done.returncode == 0 and not may_unshare():
        pytest.skip("this machine lets nobody give up the network")
    assert "Network is unreachable" in done.stderr or "Cannot assign requested address" in done.stderr, done.stderr


def may_unshare() -> bool:
    program = "import ctypes; c = ctypes.CDLL(None); print(c.unshare(0x40000000) and c.unshare(0x50000000))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "0\n"


@ON_LINUX
def test_the_programs_memory_is_limited() -> None:
    done = locked_down("limits.lock_down(2**30); bytearray(2**29); print('half'); bytearray(2**31)")
    assert done.stdout == "half\n"
    assert "MemoryError" in done.stderr


@ON_LINUX
def test_the_programs_cpu_time_is_limited() -> None:
    done = locked_down("limits.MAX_S = 1; limits.lock_down(2**30)\nwhile True: pass")
    assert done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


def test_a_timeout_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "slow.ckpt")
    monkeypatch.setattr(module, "MAX_S", 0.01)
    with pytest.raises(CorruptModel, match="more memory or time than such a file may"):
        convert_pickle(tmp_path / "slow.ckpt", tmp_path / "out.safetensors")
