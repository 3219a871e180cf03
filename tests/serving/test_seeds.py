"""A seed at each door of the server: below 2^32, because torch heeds no more of it."""

import asyncio
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from PIL import Image
from tests.serving.conftest import settings_in

from safelight.serving.app.app import create_app
from safelight.serving.mcp.mcp import Api, mcp_server

LARGEST = 2**32 - 1
WHY = "only 32 bits of a seed are used, so this one would give the same picture as 5"
SMALL: dict[str, Any] = {"prompt": "a red apple", "steps": 1, "width": 64, "height": 64}


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=120) as client:
        yield client


def png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def ask(client: httpx.Client, door: str, seed: int) -> httpx.Response:
    match door:
        case "native":
            return client.post("/v1/jobs", json=SMALL | {"seed": seed})
        case "native list":
            return client.post("/v1/jobs", json=[SMALL, SMALL | {"seed": seed}])
        case "openai":
            return client.post("/v1/images/generations", json={"prompt": "x", "size": "64x64", "seed": seed})
        case "openai form":
            form = {"prompt": "x", "size": "64x64", "seed": str(seed)}
            return client.post("/v1/images/edits", data=form, files={"image": png()})
        case "openai variations":
            return client.post("/v1/images/variations", data={"seed": str(seed)}, files={"image": png()})
        case "txt2img":
            return client.post("/sdapi/v1/txt2img", json=SMALL | {"seed": seed})
        case "img2img":
            red = "data:image/png;base64,iVBORw0KGgo="
            return client.post("/sdapi/v1/img2img", json=SMALL | {"seed": seed, "init_images": [red]})
        case _:
            raise AssertionError(door)


DOORS = ("native", "native list", "openai", "openai form", "openai variations", "txt2img", "img2img")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("seed", [2**32 + 5, 2**62 + 5, 2**64 + 5])
def test_a_seed_of_more_than_32_bits_is_refused_and_the_reason_told(door: str, seed: int, client: httpx.Client) -> None:
    answer = ask(client, door, seed)
    assert answer.status_code in (400, 422), answer.text
    assert WHY in answer.text
    assert f"at most {LARGEST}" in answer.text
    assert "Value error" not in answer.text


def test_the_largest_seed_is_drawn_and_those_after_it_begin_at_0(client: httpx.Client) -> None:
    drawn = client.post("/sdapi/v1/txt2img", json=SMALL | {"seed": LARGEST, "n_iter": 2}).raise_for_status().json()
    assert json.loads(drawn["info"])["all_seeds"] == [LARGEST, 0]
    body = {"prompt": "a red apple", "size": "64x64", "steps": 1, "seed": LARGEST, "n": 2}
    answer = client.post("/v1/images/generations", json=body).raise_for_status().json()
    assert [data["seed"] for data in answer["data"]] == [LARGEST, 0]


def test_a_seed_through_mcp(server: str, tmp_path: Path) -> None:
    async def call(seed: int, n: int) -> tuple[bool, str]:
        async with (
            Api(settings_in(tmp_path), server=server, owner=True) as api,
            Client(mcp_server(api, local=True)) as of,
        ):
            result = await of.call_tool("generate_image", SMALL | {"seed": seed, "n": n})
        return bool(result.is_error), " ".join(getattr(part, "text", "") for part in result.content)

    failed, text = asyncio.run(call(2**32 + 5, 1))
    assert failed
    assert WHY in text
    failed, text = asyncio.run(call(LARGEST, 2))
    assert not failed, text
    assert f'"seed": {LARGEST}' in text
    assert '"seed": 0,' in text


def tells_or_trains(name: str) -> bool:
    """An answer, or a recipe, whose seed is no picture's: all of its 63 bits are heeded."""
    return name == "ImageData" or name.endswith("Recipe")


def test_openapi_shows_the_largest_seed_wherever_one_is_asked_for(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def look(node: Any) -> None:
        if isinstance(node, dict):
            for name, inside in node.items():
                if name == "properties" and "seed" in inside and not tells_or_trains(node.get("title", "ImageData")):
                    asked.append(inside["seed"])
                look(inside)
        elif isinstance(node, list):
            for one in node:
                look(one)

    description = create_app(settings_in(tmp_path)).openapi()
    look(description)
    assert len(asked) >= 6
    for said in asked:
        text = json.dumps(said)
        assert f'"maximum": {LARGEST}' in text, text
