"""A real server process that dies: every accepted job is drawn once, and to the same picture."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text
from tests.patience import PATIENCE_S

from safelight.database.connect import open_database
from safelight.serving.jobs.queue import JobQueue


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
        command = [sys.executable, "-m", "safelight", "serve", "--port", str(self.port)]
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


def wishes(count: int) -> list[dict[str, Any]]:
    """Unlike pictures, in the mode that promises the same bytes."""
    dice = random.Random(5)
    return [
        {
            "prompt": dice.choice(["a red apple", "a blue car", "a cat"]),
            "seed": number,
            "steps": dice.randint(2, 6),
            "sampler": dice.choice(["DDIM", "Euler a", "DPM++ 2M"]),
            "width": 64,
            "height": 64,
            "determinism": "strict",
        }
        for number in range(count)
    ]


def ask(server: Server, asked: list[dict[str, Any]]) -> list[str]:
    answer = httpx.post(f"{server.url}/v1/jobs", json=asked, headers={"Idempotency-Key": "all"}, timeout=PATIENCE_S)
    assert answer.status_code == 202, answer.text
    return [job["id"] for job in answer.json()["data"]]


def wait_for_all(database_url: str, ids: list[str]) -> list[str | None]:
    """The pictures, by job, once all are drawn; read from the database, since the server may be away."""
    database = open_database(database_url)
    deadline = time.monotonic() + PATIENCE_S
    queue = JobQueue(database)
    while True:
        jobs = {job.id: job for job in queue.get_all(ids)}
        if all(job.state == "done" for job in jobs.values()):
            break
        assert not [job.error for job in jobs.values() if job.state == "failed"]
        assert time.monotonic() < deadline, {job.state for job in jobs.values()}
        time.sleep(0.2)
    for job_id in ids:
        kinds = [event.kind for event in queue.events(job_id)]
        assert kinds.count("done") == 1, kinds
        assert kinds[-1] == "done"
    database.close()
    return [jobs[job_id].asset_id for job_id in ids]


def draw_undisturbed(tmp_path: Path, asked: list[dict[str, Any]]) -> list[str | None]:
    home = tmp_path / "quiet"
    with serving(home) as server:
        return wait_for_all(f"sqlite:///{home / 'safelight.db'}", ask(server, asked))


def kill_again_and_again(servers: list[Server], *, times: int, longest_s: float) -> None:
    dice = random.Random(7)
    for _ in range(times):
        time.sleep(dice.uniform(0, longest_s))
        server = dice.choice(servers)
        server.stop(signal.SIGKILL)
        server.start()
        server.wait_until_ready()


@pytest.mark.parametrize(
    ("count", "kills"), [(8, 2), pytest.param(50, 10, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_accepted_job_survives_kill_9(tmp_path: Path, count: int, kills: int) -> None:
    asked = wishes(count)
    home = tmp_path / "home"
    with serving(home) as server:
        ids = ask(server, asked)
        kill_again_and_again([server], times=kills, longest_s=1.5)
        assert ask(server, asked) == ids, "the client's retry is the same request"
        drawn = wait_for_all(f"sqlite:///{home / 'safelight.db'}", ids)
    assert drawn == draw_undisturbed(tmp_path, asked)


@pytest.mark.slow
def test_two_processes_share_the_line_on_postgresql(tmp_path: Path, postgresql: str) -> None:
    url = make_url(postgresql).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE faults"))
    engine.dispose()
    shared = url.set(database="faults").render_as_string(hide_password=False)
    asked = wishes(50)
    home = tmp_path / "home"
    with serving(home, shared) as one, serving(home, shared) as two:
        ids = ask(one, asked)
        kill_again_and_again([one, two], times=10, longest_s=1.5)
        drawn = wait_for_all(shared, ids)
    assert drawn == draw_undisturbed(tmp_path, asked)


def test_a_server_that_is_stopped_puts_its_jobs_back_and_the_next_one_draws_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    asked = [wish | {"steps": 60} for wish in wishes(3)]
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
