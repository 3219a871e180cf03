"""Large pictures from many hands: the rest of the server waits for none of them, and memory is bounded."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from sqlalchemy import select
from tests.patience import PATIENCE_S, wait_until
from tests.serving.conftest import serving, settings_in
from tests.serving.server_process import serve

from safelight.database.connect import Database, open_database
from safelight.imaging.image_pool import MAX_WAITING_PER_TENANT
from safelight.serving.jobs.keys import Keys
from safelight.serving.jobs.tables import WorkerRow
from safelight.studio import Studio, picture_threads

JOB = {"prompt": "a red apple", "seed": 7, "steps": 1000, "width": 64, "height": 64}


def file_of(side: int, kind: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), "red").save(file, kind)
    return file.getvalue()


def upload(url: str, data: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{url}/v1/files", files={"file": ("picture", data)}, headers=headers, timeout=PATIENCE_S)


@dataclass
class Gate:
    """While it is closed, no picture is kept."""

    opens: threading.Event = field(default_factory=threading.Event)
    begun: list[bytes] = field(default_factory=list[bytes])
    """The files that stand before it, or have passed."""


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate, keep = Gate(), Studio.keep

    def slow(self: Studio, source: bytes) -> str:
        gate.begun.append(source)
        assert gate.opens.wait(PATIENCE_S)
        return keep(self, source)

    monkeypatch.setattr(Studio, "keep", slow)
    return gate


def beat(database: Database) -> float:
    """When the worker last said that it is alive, which it does while it has a job in hand."""
    return database.read(lambda session: session.scalar(select(WorkerRow.beat)) or 0.0)


def test_probes_lists_and_leases_wait_for_no_picture(tmp_path: Path, gate: Gate) -> None:
    settings = settings_in(tmp_path)
    database = open_database(settings.database)
    data = file_of(8, "PNG")
    with serving(settings) as url, ThreadPoolExecutor(50) as hands:
        job = httpx.post(f"{url}/v1/jobs", json=JOB).raise_for_status().json()
        wait_until(lambda: beat(database) > 0)
        # More than the event loop's own pool has threads.
        uploads = [hands.submit(upload, url, data) for _ in range(picture_threads() + MAX_WAITING_PER_TENANT + 5)]
        try:
            wait_until(lambda: sum(one.done() for one in uploads) >= 5)  # those that found the line full
            assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).status_code == 200
            assert httpx.get(f"{url}/v1/jobs", timeout=PATIENCE_S).json()["data"][0]["id"] == job["id"]
            assert httpx.post(f"{url}/v1/jobs", json=JOB | {"seed": 8}, timeout=PATIENCE_S).status_code == 202
            now = beat(database)
            wait_until(lambda: beat(database) > now)
            assert sum(not one.done() for one in uploads) >= MAX_WAITING_PER_TENANT
        finally:
            gate.opens.set()
        answers = [one.result() for one in uploads]
    database.close()
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {201, 429}
    assert all(answer.json()["error"]["code"] == "pictures_busy" for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


def test_one_key_cannot_take_the_turns_of_another(tmp_path: Path, gate: Gate) -> None:
    settings = settings_in(tmp_path)
    database = open_database(settings.database)
    joe, ann = ({"Authorization": f"Bearer {Keys(database).create(name)}"} for name in ("joe", "ann"))
    database.close()
    joes, anns = file_of(8, "PNG"), file_of(16, "PNG")
    with serving(settings) as url, ThreadPoolExecutor(20) as hands:
        try:
            uploads = [hands.submit(upload, url, joes, joe) for _ in range(15)]
            wait_until(lambda: joes in gate.begun)
            uploads.append(hands.submit(upload, url, anns, ann))
            wait_until(lambda: anns in gate.begun)
            assert gate.begun.count(joes) <= picture_threads() // 2
        finally:
            gate.opens.set()
        assert {one.result().status_code for one in uploads} == {201}


def test_memory_for_pictures_stays_within_its_budget(tmp_path: Path) -> None:
    """Eight pictures of 9 megapixels, which take 12 bytes a pixel each while they are opened and encoded anew."""
    budget_gb, data = 0.125, file_of(3000, "JPEG")
    with serve(tmp_path, picture_memory_gb=budget_gb, drain_s=0.1) as (url, process), ThreadPoolExecutor(8) as hands:
        server, most = psutil.Process(process.pid), 0
        before = server.memory_info().rss
        uploads = [hands.submit(upload, url, data) for _ in range(8)]
        probed_at = None
        while not all(one.done() for one in uploads):
            most = max(most, server.memory_info().rss)
            if probed_at is None and any(one.done() for one in uploads):
                assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).status_code == 200
                assert httpx.get(f"{url}/v1/jobs", timeout=PATIENCE_S).status_code == 200
                probed_at = sum(one.done() for one in uploads)
            time.sleep(0.01)
        assert {one.result().status_code for one in uploads} == {201}
    assert probed_at is not None
    assert probed_at < len(uploads), "the probes were answered while pictures were still waiting"
    # Twice, for what the allocator keeps and the rest of the server takes; all at once would be 0.8 GiB.
    assert most - before < 2 * budget_gb * 2**30, f"{(most - before) / 2**20:.0f} MiB"
