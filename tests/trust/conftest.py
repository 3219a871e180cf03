from pathlib import Path

import pytest
from tests.trust.pictures import POLICY

from safelight.trust.credentials import Credentials, open_credentials
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
