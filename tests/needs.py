"""What a test needs of the machine: a package or a program. Without it the test is skipped, and in CI it fails.

    @pytest.mark.needs("opacus", "promtool")

Nothing else in the tests looks for packages or programs (`tests/test_environment.py`), so that CI passes over no test
because something was not installed there.
"""

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest


def require(item: pytest.Item) -> None:
    """All packages and programs that the test's marks name."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if importlib.util.find_spec(name) is None and shutil.which(name) is None:
                lacking(name)


def lacking(name: str) -> NoReturn:
    """
    Raises:
        Failed: in CI, which has everything installed; elsewhere Skipped.
    """
    if "CI" in os.environ:
        pytest.fail(f"{name} is not installed, and CI skips nothing for that", pytrace=False)
    pytest.skip(f"{name} is not installed")
