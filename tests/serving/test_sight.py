"""A key sees and uses its own pictures, and no others, wherever the id of one may be named."""

from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

SMALL = {"prompt": "a red apple", "steps": 2, "width": 64, "height": 64}
Keyed = tuple[str, dict[str, str]]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def file_of(colour: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def upload(url: str, key: str, colour: str) -> str:
    sent = httpx.post(f"{url}/v1/files", files={"file": file_of(colour)}, headers=bearer(key), timeout=60)
    return sent.raise_for_status().json()["id"]


def drawn(url: str, key: str, **fields: Any) -> dict[str, Any]:
    job = httpx.post(f"{url}/v1/jobs", json=SMALL | fields, headers=bearer(key), timeout=60).raise_for_status().json()
    wait = f"{url}/v1/jobs/{job['id']}/wait?timeout_s=120"
    return httpx.get(wait, headers=bearer(key), timeout=130).raise_for_status().json()


@pytest.fixture(scope="module")
def pictures(keyed_server: Keyed) -> dict[str, str]:
    """Joe's: one that he sent, and one that was drawn for him."""
    url, keys = keyed_server
    return {"sent": upload(url, keys["joe"], "red"), "drawn": drawn(url, keys["joe"])["asset_id"]}


@pytest.mark.parametrize("whose", ["sent", "drawn"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jobs", lambda theirs, own: SMALL | {"init": theirs, "strength": 0.5}),
        ("/v1/jobs", lambda theirs, own: SMALL | {"init": own, "mask": theirs}),
        ("/v1/jobs", lambda theirs, own: [SMALL, SMALL | {"init": theirs, "strength": 0.5}]),
        ("/v1/jobs", lambda theirs, own: SMALL | {"controls": [{"model": "canny", "image": theirs}]}),
        ("/v1/jobs", lambda theirs, own: SMALL | {"controls": [{"model": "canny", "image": own, "hint": theirs}]}),
        ("/v1/jobs", lambda theirs, own: SMALL | {"picture_prompts": [{"model": "plus", "image": theirs}]}),
        ("/v1/jobs", lambda theirs, own: SMALL | {"regions": [{"prompt": "a cat", "mask": theirs}]}),
        ("/v1/upscales", lambda theirs, own: {"init": theirs}),
    ],
    ids=["init", "mask", "list", "control", "hint", "picture prompt", "region", "upscale"],
)
def test_a_key_cannot_use_pictures_that_it_may_not_see(
    keyed_server: Keyed, pictures: dict[str, str], path: str, body: Any, whose: str
) -> None:
    url, keys = keyed_server
    own = upload(url, keys["ann"], "blue")
    refused = httpx.post(f"{url}{path}", json=body(pictures[whose], own), headers=bearer(keys["ann"]), timeout=60)
    unknown = httpx.post(f"{url}{path}", json=body("0" * 64, own), headers=bearer(keys["ann"]), timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_asset")
    told = refused.json()["error"]["message"].replace(pictures[whose], "0" * 64)
    assert told == unknown.json()["error"]["message"], "nobody learns that it is there"


@pytest.mark.parametrize("whose", ["sent", "drawn"])
def test_a_key_sees_its_own_pictures_and_starts_from_them(
    keyed_server: Keyed, pictures: dict[str, str], whose: str
) -> None:
    url, keys = keyed_server
    seen = httpx.get(f"{url}/v1/files/{pictures[whose]}", headers=bearer(keys["joe"]))
    assert seen.status_code == 200
    assert httpx.get(f"{url}/v1/files/{pictures[whose]}", headers=bearer(keys["ann"])).status_code == 404
    assert drawn(url, keys["joe"], init=pictures[whose], strength=0.5)["state"] == "done"


def test_a_key_that_uploads_the_same_picture_may_see_it_too(keyed_server: Keyed, pictures: dict[str, str]) -> None:
    url, keys = keyed_server
    assert upload(url, keys["ann"], "green") == upload(url, keys["joe"], "green")
    green = upload(url, keys["ann"], "green")
    assert drawn(url, keys["ann"], init=green, strength=0.5)["state"] == "done"
    assert drawn(url, keys["joe"], init=green, strength=0.5)["state"] == "done"
