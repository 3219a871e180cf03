"""What every test gets: no network, a home of its own, and settings that are the defaults."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported
# Processes that tests start import this checkout, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH")])
)

import pytest
from hypothesis import settings

# Tensor code is slow the first time and fast afterwards, so a deadline an example only makes tests fail at random.
settings.register_profile("safelight", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("safelight")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SAFELIGHT_HOME of this test alone; no other setting reaches it from the caller's shell."""
    for name in list(os.environ):
        if name.startswith("SAFELIGHT_"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SAFELIGHT_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server; what is in it may be there from another test."""
    from tests.postgres import BINARIES, postgresql_server

    if not BINARIES:
        pytest.skip("PostgreSQL is not installed")
    with postgresql_server() as url:
        yield url


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
