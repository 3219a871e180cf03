"""Running servers: the application under uvicorn on a free port, with the embedded model and a home of its own."""

import json
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from tests.patience import PATIENCE_S, wait_until

from safelight.database.connect import open_database
from safelight.serving.app.app import create_app
from safelight.serving.jobs.keys import Keys
from safelight.settings import Settings

# httpx gives up after 5 s, which is short where the machine has much else to do.
for _phase in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, _phase, 2 * PATIENCE_S)


@contextmanager
def serving(settings: Settings, **app: Any) -> Generator[str, None, None]:
    """The base URL of a server in a thread of this process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(create_app(settings, **app), log_level="warning", timeout_graceful_shutdown=5)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            assert server.started, "the server did not start; its log is above"
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job once it has ended."""
    job = client.get(f"/v1/jobs/{job_id}/wait", params={"timeout_s": PATIENCE_S}).raise_for_status().json()
    assert job["state"] not in ("queued", "running"), job
    return job


def ask_and_go(url: str, body: Any, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Ask for a picture and close the connection without a word once it is drawn: the job as it was then."""
    host, headers = urlsplit(url).netloc, headers or {}

    def running() -> list[dict[str, Any]]:
        return httpx.get(f"http://{host}/v1/jobs?state=running", headers=headers).raise_for_status().json()["data"]

    before = {job["id"] for job in running()}
    jobs: list[dict[str, Any]] = []
    connection = HTTPConnection(host)
    connection.request("POST", urlsplit(url).path, json.dumps(body), {"content-type": "application/json"} | headers)
    wait_until(lambda: jobs.extend(job for job in running() if job["id"] not in before) or jobs)
    connection.close()
    return jobs[0]


def settings_in(home: Path, *, no_keys: bool = True) -> Settings:
    return Settings(home=home, preview_every=1, drain_s=0, no_keys=no_keys)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a server that takes everybody."""
    with serving(settings_in(tmp_path_factory.mktemp("server"))) as url:
        yield url


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Base URL of a server that wants a key, and two keys by name."""
    settings = settings_in(tmp_path_factory.mktemp("keyed"), no_keys=False)
    database = open_database(settings.database)
    keys = {name: Keys(database).create(name) for name in ("joe", "ann")}
    database.close()
    with serving(settings) as url:
        yield url, keys
