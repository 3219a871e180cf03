"""Only regular files are opened; everything else that may lie under a name is an error at once."""

import os
import socket
import threading
from pathlib import Path

import pytest

from safelight.regular_file import is_regular, open_regular, read_regular, real_path


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"words")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "there").symlink_to("back")
    (tmp_path / "back").symlink_to("there")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    return tmp_path


ODD = ("loop", "there", "broken", "folder", "pipe", "to-pipe", "missing", "x" * 300, "/dev/zero")


@pytest.mark.parametrize("name", ["file", "link"])
def test_a_file_is_read_through_links(odd: Path, name: str) -> None:
    assert is_regular(odd / name)
    assert read_regular(odd / name) == b"words"
    assert real_path(odd / name) == Path(os.path.realpath(odd)) / "file"


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_is_an_error_at_once(odd: Path, name: str) -> None:
    assert not is_regular(odd / name)
    # In a thread: who opens a pipe for reading waits, and a test that waits says nothing.
    faults: list[OSError] = []

    def read() -> None:
        try:
            open_regular(odd / name).close()
        except OSError as error:
            faults.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10)
    assert not reader.is_alive(), "it waits for a writer"
    [fault] = faults
    assert fault.strerror


def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert not is_regular(Path("s"))
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(Path("s"))


def test_names_that_are_none_are_no_files() -> None:
    assert not is_regular(Path("a\0b"))


def test_a_link_in_a_circle_leads_nowhere_and_raises_nothing(odd: Path) -> None:
    assert real_path(odd / "loop").name == "loop"
