"""/v1/jobs over HTTP: accepted before it is answered, seen only by its owner, told as it happens."""

import json
import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from tests.patience import PATIENCE_S
from tests.serving.conftest import ended, serving, settings_in

from safelight.serving.native.events import JobMessage

SMALL = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 64, "height": 64}


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server) as client:
        yield client


def drawn(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    job = client.post("/v1/jobs", json=SMALL | fields).raise_for_status().json()
    return ended(client, job["id"])


def test_only_a_prompt_is_needed(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json={"prompt": "a red apple"})
    assert answer.status_code == 202
    job = answer.json()
    assert job["state"] in ("queued", "running")
    assert job["spec"]["model"] == "mini"
    done = ended(client, job["id"])
    assert done["state"] == "done"
    assert done["step"] == done["total_steps"] == job["spec"]["steps"]


def test_a_job_that_ends_before_its_first_heartbeat_knows_its_steps(client: httpx.Client) -> None:
    quick = drawn(client)
    drawn(client, seed=8)  # by now nobody remembers the first one's progress but its row
    job = client.get(f"/v1/jobs/{quick['id']}").json()
    assert (job["step"], job["total_steps"]) == (2, 2)


def test_the_link_to_a_picture_needs_no_key(client: httpx.Client) -> None:
    job = drawn(client)
    answer = httpx.get(job["url"])
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(answer.content)).size == (64, 64)
    forged = httpx.get(job["url"].replace("signature=", "signature=0"))
    assert forged.status_code == 403


def test_a_picture_may_be_an_avif_and_the_start_of_another(client: httpx.Client) -> None:
    job = drawn(client, output_format="avif", metadata="none")
    answer = httpx.get(job["url"])
    assert answer.headers["content-type"] == "image/avif"
    assert urlsplit(job["url"]).path.endswith(".avif")
    with Image.open(BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("AVIF", (64, 64))
        assert b"trainedAlgorithmicMedia" in image.info["xmp"], "marks are there without metadata, too"
    assert drawn(client, init=job["asset_id"])["state"] == "done"
    sent = client.post("/v1/files", files={"file": ("picture.avif", answer.content)})
    assert sent.status_code == 400
    assert "AVIF pictures are written, but not taken from others" in sent.json()["error"]["message"]


def test_a_list_is_accepted_as_one_request(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json=[SMALL, SMALL | {"seed": 8}]).json()
    assert len({job["request"] for job in answer["data"]}) == 1
    ends = [ended(client, job["id"]) for job in answer["data"]]
    assert len({job["asset_id"] for job in ends}) == 2


def test_a_retry_is_the_same_job(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "retried"}
    first = client.post("/v1/jobs", json=SMALL, headers=headers).json()
    assert client.post("/v1/jobs", json=SMALL, headers=headers).json()["id"] == first["id"]
    other = client.post("/v1/jobs", json=SMALL | {"seed": 9}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"width": 100}, 400, "multiple of 8"),
        ({"sampler": "Eular a"}, 404, "Euler a"),
        ({"model": "mimi"}, 404, "mini"),
        ({"model": "/etc"}, 404, "no model named '/etc'"),
        ({"model": "stable-diffusion-v1-5/stable-diffusion-v1-5"}, 404, "no model named"),
        ({"stepz": 3}, 400, "stepz"),
        ({"init": "0" * 64}, 404, "no picture"),
        ({"priority": 5}, 400, "at most 0"),
        ({"width": 4096, "height": 4096}, 400, "draws at most"),
        ({"highres": {"scale": 8}, "width": 512, "height": 512}, 400, "draws at most"),
    ],
)
def test_invalid_requests_are_refused_before_a_job_is_accepted(
    client: httpx.Client, fields: dict[str, Any], status: int, says: str
) -> None:
    answer = client.post("/v1/jobs", json=SMALL | fields)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert says in error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_a_picture_starts_from_an_uploaded_one(client: httpx.Client) -> None:
    file = BytesIO()
    Image.new("RGB", (64, 64), "blue").save(file, "PNG")
    kept = client.post("/v1/files", files={"file": file.getvalue()}).raise_for_status().json()["id"]
    job = drawn(client, init=kept, strength=0.5)
    assert job["spec"]["task"] == "image-to-image"
    refused = client.post("/v1/files", files={"file": b"not a picture"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_image")


def heard(client: httpx.Client, job_id: str, **headers: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of each event until the stream ends."""
    told: list[tuple[str, str, dict[str, Any]]] = []
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as stream:
        event = {"id": "", "event": "", "data": "{}"}
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name in event:
                event[name] = value
            elif not line and event["event"]:
                told.append((event["id"], event["event"], json.loads(event["data"])))
                event = {"id": "", "event": "", "data": "{}"}
    return told


def test_events_are_complete_and_resume_after_a_disconnect(client: httpx.Client) -> None:
    job = client.post("/v1/jobs", json=SMALL | {"steps": 12, "seed": 11}).json()
    told = heard(client, job["id"])
    for number, kind, data in told:
        JobMessage.model_validate({"id": number, "event": kind, "data": data})
    lasting = [kind for number, kind, _ in told if number]
    assert lasting == ["queued", "running", "done"]
    assert [data["step"] for _, kind, data in told if kind == "step"] == sorted(
        data["step"] for _, kind, data in told if kind == "step"
    )
    assert [kind for _, kind, _ in heard(client, job["id"], **{"Last-Event-ID": "2"})] == ["done"]


def test_a_running_job_is_cancelled_at_its_next_step(client: httpx.Client) -> None:
    job = client.post("/v1/jobs", json=SMALL | {"steps": 1000}).json()
    client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
    job = ended(client, job["id"])
    assert job["state"] == "cancelled"
    assert job["asset_id"] is None


def test_callers_see_only_their_own(keyed_server: tuple[str, dict[str, str]]) -> None:
    url, keys = keyed_server
    one, two = list(keys)[:2]
    first = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {keys[one]}"})
    second = httpx.Client(base_url=url, headers={"X-API-Key": keys[two]})
    with first, second:
        job = drawn(first)
        assert second.get(f"/v1/jobs/{job['id']}").status_code == 404
        assert second.get(f"/v1/files/{job['asset_id']}").status_code == 404
        assert job["id"] in [each["id"] for each in first.get("/v1/jobs").json()["data"]]
        assert job["id"] not in [each["id"] for each in second.get("/v1/jobs").json()["data"]]
        assert first.get(f"/v1/files/{job['asset_id']}").status_code == 200
    nobody = httpx.get(f"{url}/v1/jobs")
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")


def test_request_ids_headers_and_limits(client: httpx.Client) -> None:
    answer = client.get("/healthz", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/readyz").json() == {"status": "ready"}
    huge = client.post("/v1/jobs", content=b" " * (97 * 2**20), headers={"content-type": "application/json"})
    assert (huge.status_code, huge.json()["error"]["code"]) == (413, "too_large")
    nowhere = client.get("/v1/nothing")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")


def test_choices_are_made_before_a_job_is_accepted(client: httpx.Client) -> None:
    fields = SMALL | {"prompt": "a {red|green} apple", "expand": "combinatorial"}
    made = client.post("/v1/jobs", json=fields).json()
    assert [job["spec"]["prompt"] for job in made["data"]] == ["a red apple", "a green apple"]
    assert len({job["request"] for job in made["data"]}) == 1
    one = client.post("/v1/jobs", json=fields | {"expand": "wildcards"}).json()
    assert one["spec"]["prompt"] in ("a red apple", "a green apple")
    assert client.post("/v1/jobs", json=fields | {"expand": "wildcards"}).json()["spec"] == one["spec"]
    plain = client.post("/v1/jobs", json=SMALL | {"prompt": "a {red|green} apple"}).json()
    assert plain["spec"]["prompt"] == "a {red|green} apple"


def test_a_retry_with_choices_is_the_same_job_without_a_seed(client: httpx.Client) -> None:
    fields = {name: value for name, value in SMALL.items() if name != "seed"}
    fields |= {"prompt": "{1|2|3|4|5|6|7|8|9} apples", "expand": "wildcards"}
    headers = {"Idempotency-Key": "by lot"}
    first = client.post("/v1/jobs", json=fields, headers=headers).json()
    assert client.post("/v1/jobs", json=fields, headers=headers).json()["id"] == first["id"]
    other = client.post("/v1/jobs", json=fields | {"prompt": "{1|2} apples"}, headers=headers)
    assert other.status_code == 409


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": "{a|b}" * 11, "expand": "combinatorial"}, "2048 combinations; at most 1000"),
        ({"prompt": "__../../safelight__", "expand": "wildcards"}, "leads out of the folder"),
        ({"prompt": "{a|b", "expand": "wildcards"}, "never closed"),
        ({"prompt": "a", "expand": "everything"}, "'wildcards' or 'combinatorial'"),
    ],
)
def test_invalid_choices_are_refused(client: httpx.Client, fields: dict[str, Any], says: str) -> None:
    answer = client.post("/v1/jobs", json=SMALL | fields)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_lists_of_choices_are_bounded_together(client: httpx.Client) -> None:
    half = SMALL | {"prompt": "{a|b}" * 9, "expand": "combinatorial"}
    answer = client.post("/v1/jobs", json=[half, half])
    assert "expands to 1024 pictures; at most 1000" in answer.json()["error"]["message"]


def test_a_slow_body_times_out(tmp_path: Path) -> None:
    settings = settings_in(tmp_path).model_copy(update={"body_timeout_s": 0.5})
    with serving(settings) as url, socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as client:
        client.settimeout(PATIENCE_S)
        client.sendall(b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{")
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_body_of_undeclared_length_has_the_same_limit(tmp_path: Path) -> None:
    settings = settings_in(tmp_path).model_copy(update={"max_body_bytes": 1000})
    with serving(settings) as url:
        pieces = (b" " * 100 for _ in range(20))
        answer = httpx.post(f"{url}/v1/jobs", content=pieces, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
