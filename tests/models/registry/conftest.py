from pathlib import Path

import pytest
from tests.tiny_models import checkpoint

from safelight.database.connect import Database
from safelight.models.registry.registry import Registry

__all__ = ["checkpoint", "registry"]


@pytest.fixture
def registry(database: Database, home: Path) -> Registry:
    return Registry(database, home)
