"""Calls the command line in this process, since starting a process takes seconds."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from safelight.cli.main import app
from safelight.models.checkpoints.catalogue import MINI

Call = Callable[..., Result]


@pytest.fixture
def safelight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`safelight("generate", "a red apple", "--seed", 7)`, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object, **how: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], **how)  # type: ignore[arg-type]

    return call


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A copy of the embedded model, to be damaged: files are linked, so replace them and never write into them."""
    return Path(shutil.copytree(MINI, tmp_path / "model", copy_function=os.link))
