"""Real servers that die, hang and lose their database: every accepted job is drawn once, and to the same picture."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text
from tests.patience import PATIENCE_S

from safelight.assets.read_metadata import read_metadata
from safelight.assets.store import AssetStore
from safelight.database.connect import open_database
from safelight.serving.jobs.attempts import LEASE_S
from safelight.serving.jobs.queue import JobQueue

NAMELESS = """
import os, socket
os.getpid = lambda: 1
socket.gethostname = lambda: "safelight"
from safelight.cli.main import app
app(prog_name="safelight")
"""
"""Every server has the host name and the process id of every other, as in containers made from one image."""


@dataclass
class Server:
    """`safelight serve` on a port of its own."""

    home: Path
    database_url: str
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        environment = os.environ | {
            "SAFELIGHT_HOME": str(self.home),
            "SAFELIGHT_DATABASE_URL": self.database_url,
            "SAFELIGHT_DRAIN_S": "0.2",
        }
        command = [sys.executable, "-c", NAMELESS, "serve", "--no-keys", "--port", str(self.port)]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self.process is not None
            assert self.process.poll() is None, (self.home / "log").read_text()
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, (self.home / "log").read_text()
            time.sleep(0.1)

    def stop(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE_S)
            self.process = None

    def send(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(home: Path, database_url: str = "") -> Iterator[Server]:
    home.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(home, database_url, port)
    server.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop(signal.SIGKILL)


def bodies(count: int, *, unlike: int) -> list[dict[str, Any]]:
    """So many pictures, as many of them unlike, in the mode that promises the same bytes."""
    dice = random.Random(5)
    different = [
        {
            "prompt": dice.choice(["a red apple", "a blue car", "a cat"]),
            "seed": number,
            "steps": dice.randint(2, 6),
            "sampler": dice.choice(["DDIM", "Euler a", "DPM++ 2M"]),
            "width": 64,
            "height": 64,
            "determinism": "strict",
        }
        for number in range(unlike)
    ]
    return [different[number % unlike] for number in range(count)]


def ask(server: Server, asked: list[dict[str, Any]]) -> list[str]:
    answer = httpx.post(f"{server.url}/v1/jobs", json=asked, headers={"Idempotency-Key": "all"}, timeout=PATIENCE_S)
    assert answer.status_code == 202, answer.text
    return [job["id"] for job in answer.json()["data"]]


def wait_for_all(database_url: str, ids: list[str]) -> list[str | None]:
    """The pictures, by job, once all are drawn; read from the database, since the server may be away.

    As long as jobs are finished the wait goes on: how long it takes is the machine's affair.
    """
    database = open_database(database_url)
    deadline, done = time.monotonic() + PATIENCE_S, 0
    queue = JobQueue(database)
    while True:
        jobs = {job.id: job for job in queue.get_all(ids)}
        states = Counter(job.state for job in jobs.values())
        assert set(states) <= {"queued", "running", "done"}, [job.error for job in jobs.values() if job.error]
        if states["done"] == len(ids):
            break
        if states["done"] > done:
            deadline, done = time.monotonic() + PATIENCE_S, states["done"]
        assert time.monotonic() < deadline, states
        time.sleep(0.2)
    for job_id in ids:
        kinds = [event.kind for event in queue.events(job_id)]
        assert kinds == [*["queued", "running"] * (len(kinds) // 2), "done"], kinds
    database.close()
    return [jobs[job_id].asset_id for job_id in ids]


def pixels_of(home: Path, asset_ids: list[str | None]) -> list[str]:
    """What was drawn, by the files' records: their bytes differ by signatures."""
    files = AssetStore(home / "blobs")
    paths = [files.path_of(str(asset_id)) for asset_id in asset_ids]
    return [read_metadata(path, max_pixels=10**6, max_file_bytes=10**7).pixels for path in paths]


def draw_undisturbed(tmp_path: Path, asked: list[dict[str, Any]]) -> list[str]:
    home = tmp_path / "quiet"
    with serving(home) as server:
        drawn = pixels_of(home, wait_for_all(f"sqlite:///{home / 'safelight.db'}", ask(server, asked)))
    assert all(drawn)
    return drawn


class Storm:
    """What goes wrong, in turn, with two servers on one database."""

    def __init__(self, servers: list[Server], *, seed: int = 7) -> None:
        self.servers = servers
        self.dice = random.Random(seed)

    def kill(self, server: Server | None = None) -> None:
        """With no warning, at any moment of its life, also while it starts."""
        server = server or self.dice.choice(self.servers)
        time.sleep(self.dice.choice([0.1, 1.0, 4.0]) * self.dice.random())
        server.stop(signal.SIGKILL)
        server.start()

    def hang(self, seconds: float, *, meanwhile: int = 0) -> None:
        """One stands still for longer than the other believes that it lives, and goes on."""
        still, other = self.dice.sample(self.servers, 2)
        still.send(signal.SIGSTOP)
        until = time.monotonic() + seconds
        for _ in range(meanwhile):
            self.kill(other)
        time.sleep(max(0.0, until - time.monotonic()))
        still.send(signal.SIGCONT)

    def leave(self) -> None:
        """An orderly stop."""
        server = self.dice.choice(self.servers)
        server.stop(signal.SIGTERM)
        server.start()

    def lose_database(self, seconds: float) -> None:
        """A failover: it takes no writes, its connections end, and then it is there again. SQLite is locked instead."""
        url = make_url(self.servers[0].database_url)
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            if url.drivername == "sqlite":
                connection.execute(text("PRAGMA busy_timeout = 60000"))
                connection.execute(text("BEGIN EXCLUSIVE"))
                time.sleep(seconds)
                connection.execute(text("COMMIT"))
            else:
                for state, pause_s in (("on", seconds), ("off", 0)):
                    connection.execute(text(f"ALTER SYSTEM SET default_transaction_read_only = {state}"))
                    connection.execute(text("SELECT pg_reload_conf()"))
                    connection.execute(
                        text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
                    )
                    time.sleep(pause_s)
        engine.dispose()


@pytest.fixture
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database for two servers, which nobody else uses."""
    if request.param == "sqlite":
        (tmp_path / "home").mkdir()
        yield f"sqlite:///{tmp_path / 'home' / 'safelight.db'}"
        return
    from tests.postgres import postgresql_server

    with postgresql_server() as url:
        yield make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


BOTH = pytest.mark.parametrize("shared", ["sqlite", "postgresql"], indirect=True)


@BOTH
def test_no_job_is_lost_doubled_or_cancelled_unasked(tmp_path: Path, shared: str) -> None:
    asked = bodies(200, unlike=20)
    home = tmp_path / "home"
    with serving(home, shared) as one, serving(home, shared) as two:
        ids = ask(one, asked)
        storm = Storm([one, two])
        for _ in range(10):
            storm.kill()
        storm.lose_database(3)
        storm.hang(LEASE_S + 10, meanwhile=10)
        for _ in range(5):
            storm.kill()
        for server in storm.servers:
            server.wait_until_ready()
        assert ask(one, asked) == ids, "the client's retry is the same request"
        drawn = wait_for_all(shared, ids)
    assert pixels_of(home, drawn) == draw_undisturbed(tmp_path, asked[:20]) * 10


@pytest.mark.slow
@BOTH
def test_no_job_is_lost_in_five_hundred_faults(tmp_path: Path, shared: str) -> None:
    asked = bodies(1000, unlike=50)
    home = tmp_path / "home"
    with serving(home, shared) as one, serving(home, shared) as two:
        ids = ask(one, asked)
        storm = Storm([one, two])
        faults = [storm.kill] * 3 + [storm.leave, lambda: storm.hang(1), lambda: storm.lose_database(1)]
        for number in range(500):
            if number % 100 == 50:
                storm.hang(LEASE_S + 10, meanwhile=5)
            storm.dice.choice(faults)()
        for server in storm.servers:
            server.wait_until_ready()
        drawn = wait_for_all(shared, ids)
    assert pixels_of(home, drawn) == draw_undisturbed(tmp_path, asked[:50]) * 20


def test_a_server_that_is_stopped_puts_its_jobs_back_and_the_next_one_draws_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    asked = [fields | {"steps": 60} for fields in bodies(3, unlike=3)]
    with serving(home) as server:
        ids = ask(server, asked)
        server.stop(signal.SIGTERM)
        database = open_database(f"sqlite:///{home / 'safelight.db'}")
        left = {job.id: job.state for job in JobQueue(database).get_all(ids)}
        database.close()
        assert set(left.values()) <= {"queued", "done"}
        server.start()
        server.wait_until_ready()
        wait_for_all(f"sqlite:///{home / 'safelight.db'}", ids)
