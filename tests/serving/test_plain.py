"""Text that no database keeps and numbers that are none are refused at the door, on either database."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.serving.conftest import serving, settings_in

from safelight.errors import InvalidRequest
from safelight.serving.http.plain import MAX_NESTED, require_plain_values

SMALL = {"prompt": "a red apple", "seed": 7, "steps": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = settings_in(tmp_path_factory.mktemp("plain"))
    if request.param == "postgresql":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgresql")})
    with serving(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def asked(client: httpx.Client, method: str, path: str, body: str | None = None, **headers: str) -> httpx.Response:
    """The body as it is written here: what it holds is what Python's own JSON would not write."""
    headers |= {"content-type": "application/json"}
    return client.request(method, path, content=body, headers=headers)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/jobs", r'{"prompt": "a\u0000b"}'),
        ("POST", "/v1/jobs", r'{"prompt": "a", "model": "mi\u0000ni"}'),
        ("POST", "/v1/jobs", r'{"prompt": "a", "webhook_url": "http://93.184.216.34/\u0000"}'),
        ("POST", "/v1/jobs", r'[{"prompt": "a \ud83d b"}]'),
        ("POST", "/v1/jobs", r'{"prompt": "a", "guidance": NaN}'),
        ("POST", "/v1/jobs", r'{"prompt": "a", "guidance": 1e999}'),
        ("POST", "/v1/images/generations", r'{"prompt": "a", "size": "64x64", "user": "\ud800"}'),
        ("POST", "/sdapi/v1/txt2img", r'{"prompt": "a", "alwayson_scripts": {"x": {"args": [NaN]}}}'),
        ("POST", "/sdapi/v1/txt2img", r'{"prompt": "a", "comments": {"a\u0000": 1}}'),
        ("POST", "/sdapi/v1/options", r'{"sd_model_checkpoint": "\u0000"}'),
        ("POST", "/v1/upscales", r'{"init": "\u0000"}'),
        ("GET", "/v1/jobs?before=%00", None),
        ("GET", f"/v1/jobs/{'a' * 31}%00", None),
        ("GET", "/v1/files/%00", None),
        ("GET", "/v1/models/%00", None),
    ],
)
def test_a_nul_half_a_character_or_no_number_is_400(
    client: httpx.Client, method: str, path: str, body: str | None
) -> None:
    answer = asked(client, method, path, body)
    assert answer.status_code == (422 if path.startswith("/sdapi") else 400), answer.text
    assert any(words in answer.text for words in ("NUL", "surrogate", "finite")), answer.text


def test_well_formed_values_pass(client: httpx.Client) -> None:
    body = r'{"prompt": "caf\u00e9 \ud83d\udc31 \\u0000", "steps": 1, "width": 64, "height": 64}'
    answer = asked(client, "POST", "/v1/jobs", body, **{"Idempotency-Key": "a key"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["spec"]["prompt"] == r"café 🐱 \u0000"


@pytest.mark.parametrize("number", ["9" * 19, "9" * 30, "-1", "x", "1.5", ""])
def test_an_invalid_event_id_is_400(client: httpx.Client, number: str) -> None:
    job = client.post("/v1/jobs", json=SMALL).raise_for_status().json()
    answer = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": number})
    assert answer.status_code == 400, answer.text
    assert "last-event-id" in answer.text.lower()


def test_an_invalid_signature_is_refused(client: httpx.Client) -> None:
    for signature in ("é", "%00%01", "%ff", "", "🐱" * 32):
        answer = client.get(f"/v1/files/{'0' * 64}?expires=9999999999&signature={signature}")
        assert answer.status_code in (400, 403), answer.text
    assert client.get(f"/v1/files/{'0' * 64}?expires={'9' * 25}&signature=a").status_code == 400


@pytest.mark.parametrize("said", ["Basic é", "Basic w6k", "Basic /w==", f"Basic {base64.b64encode(b'a:b').decode()}é"])
def test_invalid_basic_authentication_is_401(client: httpx.Client, said: str) -> None:
    answer = client.get("/v1/jobs", headers={"Authorization": said.encode()})
    assert answer.status_code == 401, answer.text


@pytest.mark.parametrize("value", ["a\0", {"a": ["b", {"c": "\0"}]}, {"\0": 1}, ["\udc00"], [1, [float("inf")]]])
def test_invalid_text_is_found_at_any_depth(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        require_plain_values(value, "body")


def test_nesting_is_limited() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for level in range(depth):
            value = [value] if level % 2 else {"a": value}
        return value

    require_plain_values(nested(MAX_NESTED), "body")
    with pytest.raises(InvalidRequest, match="nest deeper"):
        require_plain_values(nested(MAX_NESTED + 1), "body")
