"""Running servers: the application under uvicorn on a free port, with the embedded model and a home of its own."""

import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from safelight.database.connect import open_database
from safelight.serving.app.app import create_app
from safelight.serving.jobs.keys import Keys
from safelight.settings import Settings


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
            while not server.started:
                assert thread.is_alive(), "the server did not start; its log is above"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def settings_in(home: Path) -> Settings:
    return Settings(home=home, preview_every=1, drain_s=0, no_keys=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a server that takes everybody."""
    with serving(settings_in(tmp_path_factory.mktemp("server"))) as url:
        yield url


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Base URL of a server that wants a key, and two keys by name."""
    settings = settings_in(tmp_path_factory.mktemp("keyed"))
    database = open_database(settings.database)
    keys = {name: Keys(database).create(name) for name in ("joe", "ann")}
    database.close()
    with serving(settings) as url:
        yield url, keys
