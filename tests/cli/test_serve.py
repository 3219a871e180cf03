"""An error that prevents a server from starting is one sentence, and nothing has happened before."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from safelight.cli.main import app
from safelight.database.connect import open_database

runner = CliRunner()


def refused(*arguments: str, **environment: str) -> str:
    """What `safelight serve` said last when it did not start."""
    command = [sys.executable, "-m", "safelight", "serve", "--no-keys", *arguments]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode in (1, 2)
    assert "Traceback" not in ended.stderr
    return ended.stderr.strip().splitlines()[-1]


def test_a_taken_port_is_seen_before_anything_is_opened(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refused("--port", str(port)) == f"Error: port {port} is in use: --port PORT chooses another"
    assert not (home / "safelight.db").exists()


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused("--port", "0", SAFELIGHT_HOME=str(tmp_path / "file" / "home"))
    assert "cannot be created" in said
    assert "SAFELIGHT_HOME" in said


def test_a_file_that_is_no_database(home: Path) -> None:
    (home / "safelight.db").write_bytes(bytes(range(256)) * 20)
    said = refused("--port", "0")
    assert "not a database" in said
    assert "restore it from a backup" in said


def test_a_database_of_a_newer_version(home: Path) -> None:
    url = f"sqlite:///{home / 'safelight.db'}"
    open_database(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    assert "made by a newer safelight" in refused("--port", "0")


def test_a_database_that_does_not_answer() -> None:
    said = refused("--port", "0", SAFELIGHT_DATABASE_URL="postgresql://joe:secret@127.0.0.1:1/x")
    assert "is the server running" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "safelight keys create NAME"),
        (["--host", "0.0.0.0"], "safelight keys create NAME"),
        (["--no-keys", "--host", "0.0.0.0"], "is reachable from other machines"),
        (["--no-keys", "--host", "::"], "is reachable from other machines"),
    ],
)
def test_a_server_without_keys_is_meant_and_near(arguments: list[str], said: str) -> None:
    ended = runner.invoke(app, ["serve", *arguments])
    assert ended.exit_code == 2
    assert said in str(ended.output) + str(ended.exception)
