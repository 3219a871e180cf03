"""/readyz proves that a job would be accepted and drawn, and says at once where not; what was accepted is kept."""

import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from tests.patience import wait_until
from tests.postgres import postgresql_server
from tests.serving.conftest import serving, settings_in
from tests.serving.server_process import serve
from tests.serving.test_trouble import ask, ended_at

from safelight.engine.engine import Engine as DrawingEngine

Trouble = Callable[[Engine], Generator[None, None, None]]


def readiness(url: str) -> tuple[int, str]:
    answer = httpx.get(f"{url}/readyz", timeout=30)
    return answer.status_code, answer.text


@contextmanager
def locked(engine: Engine) -> Generator[None, None, None]:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.execute(text("BEGIN EXCLUSIVE"))
        else:
            connection.execute(text("BEGIN"))
            connection.execute(text("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"))
        yield
        connection.execute(text("COMMIT"))


@contextmanager
def broken(engine: Engine) -> Generator[None, None, None]:
    """An error of the database that nobody foresees: one table is away."""
    with engine.connect() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO gone"))
        yield
        connection.execute(text("ALTER TABLE gone RENAME TO jobs"))


@contextmanager
def read_only(engine: Engine) -> Generator[None, None, None]:
    """As after a failover to a standby."""
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    with engine.connect() as connection:
        for state in ("on", "off"):
            connection.execute(text(f"ALTER SYSTEM SET default_transaction_read_only = {state}"))
            connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text(others))
            if state == "on":
                yield


@pytest.fixture
def own_database(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str, None, None]:
    """A server's own, since all in it are stopped."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'safelight.db'}"
        return
    with postgresql_server() as url:
        yield make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("own_database", "trouble", "refuses"),
    [
        ("sqlite", locked, False),
        ("sqlite", broken, True),
        ("postgresql", locked, False),
        ("postgresql", broken, True),
        ("postgresql", read_only, True),
    ],
    indirect=["own_database"],
)
def test_trouble_with_the_database_is_seen_and_passes(
    tmp_path: Path, own_database: str, trouble: Trouble, refuses: bool
) -> None:
    settings = settings_in(tmp_path).model_copy(update={"database_url": own_database})
    engine = create_engine(own_database, isolation_level="AUTOCOMMIT")
    with serving(settings) as url:
        assert readiness(url)[0] == 200
        with trouble(engine):
            # Each of these answers comes while the trouble lasts.
            wait_until(lambda: readiness(url)[0] == 503)
            status, said = readiness(url)
            assert status == 503
            assert "not_ready" in said
            if refuses:
                assert httpx.post(f"{url}/v1/jobs", json={"prompt": "a cat"}, timeout=30).status_code == 507
        wait_until(lambda: readiness(url)[0] == 200)
        assert ended_at(url, ask(url)["id"])["state"] == "done"
    engine.dispose()


def test_a_full_disk_is_seen_and_passes(tmp_path: Path) -> None:
    with serve(tmp_path) as (url, process):
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))  # no file may grow, nor be written at all
        assert readiness(url)[0] == 503
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        wait_until(lambda: readiness(url)[0] == 200)


def test_an_engine_that_broke_down_takes_no_more_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_self: DrawingEngine) -> bool:
        raise ZeroDivisionError("ours")

    with serving(settings_in(tmp_path)) as url:
        with monkeypatch.context() as patched:
            patched.setattr(DrawingEngine, "step", breaks)
            job = ask(url)
            wait_until(lambda: readiness(url)[0] == 503)
        wait_until(lambda: "the engine has stopped" in readiness(url)[1])
        wait_until(lambda: httpx.get(f"{url}/v1/jobs/{job['id']}").json()["state"] == "queued")
    with serving(settings_in(tmp_path)) as url:
        assert ended_at(url, job["id"])["state"] == "done"
