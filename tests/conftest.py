"""For every test: no network, its own SAFELIGHT_HOME, and default settings."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported
# Networks here are small, and workers run beside each other: more threads than one wait longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start import this checkout, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH")])
)

import pytest
from hypothesis import HealthCheck, settings

from safelight.settings import Settings
from safelight.trust.policy import Policy

if TYPE_CHECKING:
    from safelight.database.connect import Database

# Tensor code is slow the first time and fast afterwards, and the machine may have much else to do: bounds on the time
# of an example, or on making one up, only make tests fail at random.
settings.register_profile(
    "safelight", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("safelight")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own SAFELIGHT_HOME; other settings of the caller's shell are removed."""
    for name in list(os.environ):
        if name.startswith("SAFELIGHT_"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SAFELIGHT_HOME", str(home))
    monkeypatch.setenv("SAFELIGHT_TRUST_WATERMARK", "false")
    return home


def of(settings: Settings) -> Policy:
    """Tests compare pixels as they are drawn: they get a watermark only where a test says `trust_watermark=True`."""
    policy = policy_of(settings)
    return policy if "trust_watermark" in settings.model_fields_set else replace(policy, watermark=False)


policy_of, Policy.of = Policy.of, staticmethod(of)  # pyright: ignore


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server; it may hold data of other tests."""
    from tests.needs import lacking
    from tests.postgres import BINARIES, postgresql_server

    if not BINARIES:
        lacking("PostgreSQL")
    with postgresql_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    from sqlalchemy.orm import Session

    from safelight.database.connect import open_database
    from safelight.database.tables import Base

    url: str = request.getfixturevalue("postgresql")
    database = open_database(url)

    def empty(session: Session) -> None:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())

    database.write(empty)
    database.close()
    return url


@pytest.fixture
def database(database_url: str) -> "Iterator[Database]":
    from safelight.database.connect import open_database

    opened = open_database(database_url)
    yield opened
    opened.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    from tests.needs import require

    require(item)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
