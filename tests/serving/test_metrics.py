"""/metrics and the log of a server that draws, refuses and fails."""

import json
import logging
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.conftest import ended, serving, settings_in

from safelight.database.connect import open_database
from safelight.serving.http.log import JsonLines
from safelight.serving.jobs.keys import Keys

SMALL = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 64, "height": 64}


def scraped(url: str, **headers: str) -> dict[tuple[str, str], float]:
    """Values by name and labels, summed over the labels that are not asked for."""
    page = httpx.get(f"{url}/metrics", headers=headers).raise_for_status()
    assert page.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, " ".join(f"{name}={sample.labels[name]}" for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_a_picture_and_refusals_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_in(tmp_path, no_keys=False)
    database = open_database(settings.database)
    keys = Keys(database)
    joe, boss = keys.create("joe"), keys.create("boss", scopes=("draw", "admin"))
    database.close()
    with caplog.at_level(logging.INFO, logger="safelight"), serving(settings) as url:
        headers = {"authorization": f"Bearer {joe}"}
        with httpx.Client(base_url=url, headers=headers) as client:
            job = client.post("/v1/jobs", json=SMALL, headers={"x-request-id": "mine-7"}).json()
            ended(client, job["id"])
            assert client.post("/v1/jobs", json=SMALL | {"sampler": "Eular"}).status_code == 404
            assert client.get("/metrics").status_code == 403
        assert httpx.get(f"{url}/metrics").status_code == 401
        seen = scraped(url, authorization=f"Bearer {boss}")

    mine = "key=joe model=mini"
    assert seen["safelight_pictures_total", mine] == 1
    assert seen["safelight_steps_total", mine] == 2
    assert seen["safelight_compute_seconds_total", mine] > 0
    assert seen["safelight_wait_seconds_count", "key=joe"] == 1
    for stage in ("encode", "denoise", "decode", "store"):
        assert seen["safelight_stage_seconds_count", f"model=mini stage={stage}"] == 1
    assert seen["safelight_refusals_total", "code=unknown_sampler key=joe"] == 1
    assert seen["safelight_refusals_total", "code=invalid_api_key key="] == 1
    assert seen["safelight_http_requests_total", "method=POST route=/v1/jobs status=202"] == 1
    assert seen["safelight_http_requests_total", "method=GET route=/v1/jobs/{job_id}/wait status=200"] == 1
    assert seen["safelight_queue_jobs", "state=queued"] == 0

    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert "red apple" not in json.dumps(lines)
    states = [line for line in lines if line["logger"] == "safelight.serving.http.observe"]
    assert [line["state"] for line in states] == ["queued", "running", "done"]
    assert {(line["job_id"], line["request_id"], line["key"]) for line in states} == {(job["id"], "mine-7", "joe")}
    asked = next(line for line in lines if line.get("request_id") == "mine-7" and line.get("method"))
    assert (asked["path"], asked["status"], asked["key"]) == ("/v1/jobs", 202, "joe")
    refused = next(line for line in lines if line.get("code") == "unknown_sampler")
    assert refused["status"] == 404


def test_a_server_without_keys_shows_its_metrics_to_all_who_reach_it(server: str) -> None:
    assert ("safelight_queue_readable", "") in scraped(server)
    assert httpx.get(f"{server}/v1/nothing").status_code == 404
    assert scraped(server)["safelight_http_requests_total", "method=GET route=unmatched status=404"] >= 1


def test_links_are_logged_without_their_signature(server: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="safelight"):
        httpx.get(f"{server}/v1/files/{'0' * 64}?expires=1&signature=opens-it")
    assert "opens-it" not in caplog.text
    assert f"GET /v1/files/{'0' * 64} 403" in caplog.text
