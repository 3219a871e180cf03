from pathlib import Path

import pytest
from tests.trust.pictures import POLICY

from safelight.database.connect import Database
from safelight.settings import Settings
from safelight.trust.credentials import Credentials, open_credentials
from safelight.trust.ledger import Ledger
from safelight.trust.signer import Signer


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """A development certificate; tests must not write into its folder."""
    return open_credentials(tmp_path_factory.mktemp("trust") / "trust")


@pytest.fixture(scope="session")
def signer(credentials: Credentials) -> Signer:
    return Signer(credentials, POLICY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where certificates are kept, not made yet."""
    return tmp_path / "trust"


@pytest.fixture
def ledger(database: Database, home: Path) -> Ledger:
    """An empty one, on each of the two databases."""
    return Ledger(Settings(home=home), database)
