import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_models import checkpoint, model, one_thread

__all__ = ["checkpoint", "folder", "model", "one_thread"]


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint("sd1"), tmp_path / "sd1"))
