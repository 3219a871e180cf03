"""A training run through /v1/jobs: accepted, followed, cancelled, taken up again; its result is there at once."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.lifecycle.training.short_runs import write_pictures
from tests.serving.conftest import ended, serving, settings_in


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[httpx.Client]:
    with serving(settings_in(home).model_copy(update={"allow_training": True, "device": "cpu"})) as url:
        with httpx.Client(base_url=url) as client:
            yield client


def order(home: Path, **submit_options: Any) -> dict[str, Any]:
    data = write_pictures(home / "data", 4)
    usual = {"kind": "lora", "name": "learnt", "data": str(data), "steps": 3, "batch": 2, "rank": 2, "tracker": "none"}
    return {"kind": "training", "recipe": usual | {"min_side": 16, "resolution": 64} | submit_options}


def test_a_run_is_a_job_whose_result_can_be_used_at_once(client: httpx.Client, home: Path) -> None:
    answer = client.post("/v1/jobs", json=order(home))
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["spec"]["task"] == "training"
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        told = [line for line in stream.iter_lines() if line.startswith(("event", "data"))]
    assert "event: step" in told
    [done] = [json.loads(data.partition(": ")[2]) for kind, data in pairwise(told) if kind == "event: done"]
    assert (done["name"], done["kind"], done["reference"]) == ("learnt", "lora", "learnt@1")
    view = client.get(f"/v1/jobs/{job['id']}").json()
    assert (view["state"], view["step"], view["total_steps"], view["url"]) == ("done", 3, 3, None)
    assert digest_drawn_with(client, "learnt") == done["digest"]


def test_a_second_run_of_a_name_is_its_second_version(client: httpx.Client, home: Path) -> None:
    """Drawn with, by number and by name, in the server that was running all along."""
    digests: list[str] = []
    for seed in (1, 2):
        job = client.post("/v1/jobs", json=order(home, name="twice", seed=seed)).json()
        assert ended(client, job["id"])["state"] == "done"
        digests.append(digest_drawn_with(client, "twice"))
    assert digests[0] != digests[1]
    assert [digest_drawn_with(client, f"twice@{number}") for number in (1, 2)] == digests


def digest_drawn_with(client: httpx.Client, lora: str) -> str:
    picture = {"prompt": f"a red apple <lora:{lora}:0.8>", "seed": 7, "steps": 1, "width": 64, "height": 64}
    drawn = client.post("/v1/jobs", json=picture).json()
    assert ended(client, drawn["id"])["state"] == "done"
    return drawn["spec"]["loras"][0]["digest"]


def test_the_error_of_a_run_is_in_its_job(client: httpx.Client, home: Path) -> None:
    job = client.post("/v1/jobs", json=order(home, name="lost", data=str(home / "nowhere"))).json()
    job = ended(client, job["id"])
    assert job["state"] == "failed"
    assert job["error"]["code"] == "invalid_request"
    assert "there is no such folder" in job["error"]["message"]


def test_an_invalid_recipe_is_refused(client: httpx.Client, home: Path) -> None:
    answer = client.post("/v1/jobs", json=order(home, rnak=3))
    assert answer.status_code == 400
    assert "rnak: no such field; did you mean 'rank'" in answer.json()["error"]["message"]


def test_a_run_that_is_cancelled_leaves_a_checkpoint(client: httpx.Client, home: Path) -> None:
    job = client.post("/v1/jobs", json=order(home, name="long", steps=100_000, save_every=100_000)).json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        for line in stream.iter_lines():
            if line == "event: step":
                break
    with ThreadPoolExecutor() as pool:  # Asked again while it is written, as the worker's own heartbeat does.
        for answer in pool.map(client.post, [f"/v1/jobs/{job['id']}/cancel"] * 4):
            answer.raise_for_status()
    assert ended(client, job["id"])["state"] == "cancelled"
    assert (home / "runs" / job["id"] / "state.pt").is_file()
    assert not (home / "runs" / job["id"] / "result.json").exists()


def test_training_is_refused_unless_it_is_enabled(server: str, home: Path) -> None:
    answer = httpx.post(f"{server}/v1/jobs", json=order(home))
    assert answer.status_code == 403
    assert "SAFELIGHT_ALLOW_TRAINING" in answer.json()["error"]["message"]
