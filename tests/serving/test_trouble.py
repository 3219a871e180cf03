"""The world goes wrong around a running server: it says so, and goes on."""

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text
from tests.patience import wait_until
from tests.serving.conftest import ended, serving, settings_in

from safelight.database.connect import open_database
from safelight.serving.jobs.keys import Keys

SMALL = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 64, "height": 64}


def ask(url: str, **fields: Any) -> dict[str, Any]:
    return httpx.post(f"{url}/v1/jobs", json=SMALL | fields).raise_for_status().json()


def ended_at(url: str, job_id: str) -> dict[str, Any]:
    with httpx.Client(base_url=url) as client:
        return ended(client, job_id)


def test_a_picture_that_cannot_be_stored_is_drawn_again_once_it_can(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    with serving(settings_in(tmp_path)) as url:
        blobs.write_text("a file where the folder should be, as full as any disk")
        job = ask(url)
        wait_until(lambda: httpx.get(f"{url}/v1/jobs/{job['id']}").json()["attempts"] >= 1)
        wait_until(lambda: httpx.get(f"{url}/v1/jobs/{job['id']}").json()["state"] == "queued")
        blobs.unlink()
        done = ended_at(url, job["id"])
        events = httpx.get(f"{url}/v1/jobs/{job['id']}/events").text
    assert done["state"] == "done"
    assert done["attempts"] == 2
    assert "SAFELIGHT_HOME/blobs" in events, "why it went back in line, without where that is"
    assert str(tmp_path) not in events


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path)) as url:
        ended_at(url, ask(url)["id"])
        locker = create_engine(f"sqlite:///{tmp_path / 'safelight.db'}", isolation_level="AUTOCOMMIT")
        with locker.connect() as connection:
            connection.execute(text("BEGIN EXCLUSIVE"))
            answers: list[dict[str, Any]] = []
            asker = threading.Thread(target=lambda: answers.append(ask(url, seed=8)))
            asker.start()
            time.sleep(1.5)
            assert not answers, "nothing can have been committed yet"
            connection.execute(text("COMMIT"))
        asker.join()
        locker.dispose()
        assert ended_at(url, answers[0]["id"])["state"] == "done"


def test_a_full_queue_answers_with_retry_after(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path).model_copy(update={"longest_line": 2, "jobs_in_hand": 1})) as url:
        ask(url, steps=1000)
        wait_until(lambda: httpx.get(f"{url}/v1/jobs?state=running").json()["data"] != [])
        ask(url, steps=1000)
        ask(url, steps=1000)
        refused = httpx.post(f"{url}/v1/jobs", json=SMALL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-should-retry"] == "true"


@pytest.mark.parametrize(
    ("limits", "code"),
    [({"per_minute": 2}, "rate_limit_exceeded"), ({"pictures_per_day": 2}, "quota_exceeded")],
)
def test_a_key_gets_what_it_is_allowed_and_no_more(tmp_path: Path, limits: dict[str, int], code: str) -> None:
    settings = settings_in(tmp_path)
    database = open_database(settings.database)
    key = Keys(database).create("joe", **limits)  # pyright: ignore[reportArgumentType]
    other = Keys(database).create("ann")
    database.close()
    with serving(settings) as url:
        joe, ann = ({"Authorization": f"Bearer {each}"} for each in (key, other))
        assert httpx.post(f"{url}/v1/jobs", json=[SMALL, SMALL | {"seed": 8}], headers=joe).status_code == 202
        refused = httpx.post(f"{url}/v1/jobs", json=SMALL, headers=joe)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, code)
        assert httpx.post(f"{url}/v1/jobs", json=SMALL, headers=ann).status_code == 202


def test_a_revoked_key_is_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    database = open_database(settings.database)
    keys = Keys(database)
    key = keys.create("joe")
    keys.create("ann")
    with serving(settings) as url:
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{url}/v1/jobs", headers=headers).status_code == 200
        keys.revoke("joe")
        refused = httpx.get(f"{url}/v1/jobs", headers=headers)
    database.close()
    assert refused.status_code == 401
    assert "revoked" in refused.json()["error"]["message"]


@pytest.mark.parametrize("after", ["queued", "running", "step"])
def test_cancelling_works_at_every_stage(server: str, after: str) -> None:
    job = ask(server, steps=1000, seed=len(after))
    with httpx.stream("GET", f"{server}/v1/jobs/{job['id']}/events") as stream:
        for line in stream.iter_lines():
            if line == f"event: {after}":
                break
    httpx.post(f"{server}/v1/jobs/{job['id']}/cancel").raise_for_status()
    assert ended_at(server, job["id"])["state"] == "cancelled"
    # The engine is free again.
    assert ended_at(server, ask(server)["id"])["state"] == "done"
