"""What the server says names no place on it, whoever says it."""

import json
from pathlib import Path

import httpx
import pytest
from tests.serving.conftest import serving, settings_in

from safelight.errors import StorageFailed
from safelight.serving.jobs.redact import caller_message, redact_paths

HOME = Path("/home/joe smith/.local/share/safelight")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"{HOME}/loras/ink.safetensors cannot be read", "SAFELIGHT_HOME/loras/ink.safetensors cannot be read"),
        (f"cannot write to {HOME}: disk full", "cannot write to SAFELIGHT_HOME: disk full"),
        (f"unable to open sqlite:///{HOME}/safelight.db", "unable to open sqlite:///SAFELIGHT_HOME/safelight.db"),
        ("x is a link to /srv/secret/y.safetensors: copy", "x is a link to y.safetensors: copy"),
        ("[Errno 2] No such file: '/usr/lib/python3/x.so'", "[Errno 2] No such file: 'x.so'"),
        ("socket \"/var/run/postgresql/.s.PGSQL.5432\" failed", 'socket ".s.PGSQL.5432" failed'),
        ("/mnt/models/ is full", "a folder is full"),
        (
            'connection failed: connection to server at "10.1.2.3", port 5432 failed: refused',
            "connection failed: the database server failed: refused",
        ),
        (r"C:\Users\joe\ink.safetensors is damaged", "ink.safetensors is damaged"),
    ],
)  # fmt: skip
def test_a_path_becomes_a_name(said: str, told: str) -> None:
    assert redact_paths(said, HOME) == told


@pytest.mark.parametrize(
    "words",
    [
        "no job 'x'; GET /v1/jobs lists the known ones",
        "a unit has no model; GET /controlnet/model_list lists them",
        "https://pictures.example/a/b.png: answered 404",
        "the image is 1/2 of it, and/or an image/png of 64x64",
        "no model named 'org/name@main'; did you mean 'org/other'?",
        "<lora:ink:0.5> and (apple:1.2)",
    ],
)
def test_text_that_is_no_path_is_unchanged(words: str) -> None:
    assert redact_paths(words, HOME) == words


def test_the_log_keeps_the_full_message(caplog: pytest.LogCaptureFixture) -> None:
    assert "joe" not in caller_message(StorageFailed(f"cannot write {HOME}/blobs/x.png"), HOME)
    assert f"{HOME}/blobs/x.png" in caplog.text


def test_answers_jobs_and_events_contain_no_paths(tmp_path: Path) -> None:
    small = {"prompt": "an apple", "seed": 7, "steps": 1, "width": 64, "height": 64}
    with serving(settings_in(tmp_path)) as url, httpx.Client(base_url=url, timeout=60) as client:
        job = client.post("/v1/jobs", json=small).raise_for_status().json()
        done = client.get(f"/v1/jobs/{job['id']}/wait").json()
        said = [json.dumps(done), client.get(f"/v1/jobs/{job['id']}/events").text]
        [blob] = (tmp_path / "blobs").rglob(f"{done['asset_id']}*")
        blob.write_bytes(b"damaged")
        damaged = client.get(f"/v1/files/{done['asset_id']}")
        assert damaged.status_code == 500
        assert "was damaged" in damaged.text
        assert "SAFELIGHT_HOME/blobs" in damaged.text
        said.append(damaged.text)
        refused = client.post("/v1/jobs", json=small | {"init": done["asset_id"]})
        said.append(refused.text)
    assert not any(str(tmp_path) in text for text in said)
