"""Other people's web pages can neither drive a server without keys nor read what it answers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.serving.conftest import serving, settings_in

from safelight.database.connect import open_database
from safelight.serving.app.app import create_app
from safelight.serving.jobs.keys import Keys

JOB = {"prompt": "a red apple", "steps": 1, "width": 64, "height": 64}
PAGE = "http://evil.example"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without keys that has more names than its own, and lets one origin's pages in."""
    settings = settings_in(tmp_path_factory.mktemp("named"))
    more = {"allowed_hosts": "host.docker.internal *.lan", "cors_origins": "http://page.example"}
    with serving(settings.model_copy(update=more)) as url:
        yield url


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "localhost.evil.example", "10.0.0.1", "[::2]", ""]
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/sdapi/v1/options", "/docs", "/openapi.json"])
def test_a_page_with_a_rebound_name_reads_nothing(server: str, host: str, path: str) -> None:
    refused = httpx.get(f"{server}{path}", headers={"host": host})
    assert refused.status_code == 403
    assert "SAFELIGHT_ALLOWED_HOSTS" in refused.text


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7860", "localhost.", "127.0.0.1", "127.9.9.9:1", "[::1]:7860"]
)
def test_this_machines_own_names_are_accepted(server: str, host: str) -> None:
    assert httpx.get(f"{server}/v1/jobs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("host.docker.internal:7860", 200), ("draw.lan", 200), ("a.draw.lan", 200), ("lan", 403), ("evillan", 403)],
)
def test_the_operator_may_allow_more_names(named: str, host: str, status: int) -> None:
    assert httpx.get(f"{named}/v1/jobs", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": PAGE},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"origin": PAGE, "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost:3000"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jobs", {"json": JOB}),
        ("/v1/jobs", {"content": '{"prompt": "a"}', "headers": {"content-type": "text/plain"}}),
        ("/v1/files", {"files": {"file": b""}}),
        ("/sdapi/v1/interrupt", {}),
    ],
    ids=["json", "plain text", "multipart", "empty"],
)
def test_a_page_of_another_site_is_refused(
    server: str, path: str, body: dict[str, dict[str, str]], headers: dict[str, str]
) -> None:
    asked = body | {"headers": {**body.get("headers", {}), **headers}}
    refused = httpx.post(f"{server}{path}", **asked)  # pyright: ignore[reportArgumentType]
    assert refused.status_code == 403, refused.text
    assert "a page of another site" in refused.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-mode": "cors"},  # Node's own fetch, which is no browser
        {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1"},
        {"sec-fetch-site": "none"},
        {"origin": "http://localhost:7860", "host": "localhost:7860"},
    ],
    ids=str,
)
def test_programs_and_the_servers_own_pages_are_accepted(server: str, headers: dict[str, str]) -> None:
    assert httpx.post(f"{server}/sdapi/v1/interrupt", headers=headers).status_code == 200


def test_a_page_of_an_allowed_origin_is_accepted(named: str) -> None:
    page = {"origin": "http://page.example", "sec-fetch-site": "cross-site"}
    answer = httpx.post(f"{named}/sdapi/v1/interrupt", headers=page)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://page.example"


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    app = create_app(settings_in(tmp_path))

    async def ask(address: str) -> int:
        from_there = httpx.ASGITransport(app=app, client=(address, 5000))
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(base_url="http://localhost", transport=from_there) as client:
                return (await client.get("/v1/jobs")).status_code

    assert asyncio.run(ask("127.0.0.1")) == 200
    assert asyncio.run(ask("192.168.1.5")) == 401


def test_after_revoking_the_last_key_a_key_is_still_required(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, no_keys=False)
    database = open_database(settings.database)
    keys = Keys(database)
    key = keys.create("joe")
    with serving(settings) as url:
        assert httpx.get(f"{url}/v1/jobs", headers={"x-api-key": key}).status_code == 200
        keys.revoke("joe")
        for headers in ({}, {"x-api-key": key}, {"authorization": "Bearer none"}):
            assert httpx.get(f"{url}/v1/jobs", headers=headers).status_code == 401
    database.close()
