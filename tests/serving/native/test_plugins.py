"""Plugins over HTTP: their schemas are listed, and their fields are fields of a request in every dialect."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.plugin_files import EFFECT, SAMPLERS, UPSCALER, install, see
from tests.serving.conftest import ended, serving, settings_in

from safelight.diffusion import samplers


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a server with a plugin of each kind, and one that fails."""
    before = dict(samplers.SAMPLERS)
    with pytest.MonkeyPatch.context() as patch:
        packages = tmp_path_factory.mktemp("packages")
        install(packages, "kit", EFFECT, effects={"glow": "Glow"}, upscalers={"sharp": "Missing"})
        install(packages, "kit-samplers", SAMPLERS, samplers={"Euler Poly": "POLY"})
        install(packages, "kit-upscalers", UPSCALER, upscalers={"blocks": "Blocks"})
        see(packages, patch)
        settings = settings_in(tmp_path_factory.mktemp("home"))
        with serving(settings) as url, httpx.Client(base_url=url) as client:
            yield client
    samplers.SAMPLERS.clear()
    samplers.SAMPLERS.update(before)


def test_plugins_are_listed_with_the_schema_of_their_fields(client: httpx.Client) -> None:
    found = client.get("/v1/plugins").raise_for_status().json()
    assert found["object"] == "list"
    assert [(one["kind"], one["name"], one["state"]) for one in found["data"]] == [
        ("effect", "glow", "ready"),
        ("sampler", "Euler Poly", "ready"),
        ("upscaler", "blocks", "ready"),
        ("upscaler", "sharp", "failed"),
    ]
    glow = found["data"][0]
    assert (glow["package"], glow["version"], glow["about"]) == ("kit", "1.0", "Bright areas shine.")
    assert glow["json_schema"]["properties"]["strength"]["default"] == 0.5
    # What an exception says is for the operator.
    assert "problem" not in glow


def test_a_job_has_the_effect_with_its_defaults_and_its_package(client: httpx.Client) -> None:
    body = {"prompt": "a red apple", "steps": 1, "sampler": "Euler Poly", "effects": {"glow": {}}}
    job = client.post("/v1/jobs", json=body).raise_for_status().json()
    spec = ended(client, job["id"])["spec"]
    assert spec["effects"] == {"glow": {"strength": 0.5}}
    assert [(one["kind"], one["package"]) for one in spec["plugins"]] == [
        ("effect", "kit"),
        ("sampler", "kit-samplers"),
    ]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images/generations"])
def test_what_is_wrong_is_said_by_field(client: httpx.Client, path: str) -> None:
    for effects, param in (({"glow": {"strenght": 1}}, "effects.glow.strenght"), ({"gloww": {}}, "effects.gloww")):
        answer = client.post(path, json={"prompt": "a red apple", "effects": effects})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert "did you mean" in error["message"]


def test_samplers_and_upscalers_are_in_the_lists_of_other_clients(client: httpx.Client) -> None:
    def names(path: str) -> set[str]:
        return {one["name"] for one in client.get(f"/sdapi/v1/{path}").raise_for_status().json()}

    assert "Euler Poly" in names("samplers")
    assert {"blocks", "Lanczos"} <= names("upscalers")
    assert "sharp" not in names("upscalers")


def test_a_plugin_that_failed_is_named_where_it_is_asked_for(client: httpx.Client) -> None:
    body = {"init": "0" * 64, "method": "sharp"}
    error = client.post("/v1/upscales", json=body).json()["error"]
    assert error["message"] == "upscaler: the upscaler 'sharp' of kit 1.0 did not load; `safelight plugins` says why"


def test_a_request_without_a_key_sees_no_plugins(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, no_keys=False)) as url:
        assert httpx.get(f"{url}/v1/plugins").status_code == 401
