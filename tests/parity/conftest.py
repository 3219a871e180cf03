import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

os.environ["DIFFUSERS_VERBOSITY"] = os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from tests.parity.pipelines import Reference
from tests.tiny_models import checkpoint, model, one_thread

__all__ = ["checkpoint", "model", "one_thread", "reference"]


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], Reference]:
    """diffusers' own pipelines for a kind of checkpoint."""
    return cache(lambda kind: Reference(checkpoint(kind)))
