"""The MCP server, as the client of the protocol's own package finds it."""

import asyncio
import base64
import json
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image
from tests.patience import PATIENCE_S, wait_in_loop_until, wait_until

from safelight.serving.mcp import mcp
from safelight.serving.mcp.mcp import Api, mcp_server
from safelight.settings import Settings

SMALL = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 64, "height": 64}
TOOLS = "generate_image edit_image upscale_image list_models list_samplers get_job cancel_job get_image".split()


def told(result: CallToolResult) -> list[dict[str, Any]]:
    return [json.loads(part.text) for part in result.content if isinstance(part, TextContent)]


def pictures(result: CallToolResult) -> list[Image.Image]:
    parts = [part for part in result.content if isinstance(part, ImageContent)]
    assert all(part.mime_type in ("image/png", "image/jpeg") for part in parts)
    return [Image.open(BytesIO(base64.b64decode(part.data))) for part in parts]


def test_a_client_over_stdio_draws_a_picture(home: Path) -> None:
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "safelight", "mcp"], env={**os.environ, "SAFELIGHT_HOME": str(home)}
    )

    async def go() -> None:
        async with Client(command, read_timeout_seconds=PATIENCE_S) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert sorted(tools) == sorted(TOOLS)
            assert all(tool.description for tool in tools.values())
            assert tools["generate_image"].input_schema["required"] == ["prompt"]
            steps: list[tuple[float, float | None]] = []

            async def progress(done: float, total: float | None, _message: str | None) -> None:
                steps.append((done, total))

            result = await client.call_tool("generate_image", SMALL, progress_callback=progress)
            assert not result.is_error, result.content
            [job], [image] = told(result), pictures(result)
            assert (job["state"], job["seed"], image.size) == ("done", 7, (64, 64))
            # A notification may come after the answer.
            await wait_in_loop_until(lambda: steps[-1:] == [(2, 2)])
            again = await client.call_tool("get_image", {"asset_id": job["asset_id"]})
            assert pictures(again)[0].tobytes() == image.tobytes()

    asyncio.run(go())


def with_client(api: Callable[[], Api], use: Callable[[Client], Awaitable[None]], *, local: bool = True) -> None:
    async def go() -> None:
        async with api() as opened, Client(mcp_server(opened, local=local)) as client:
            await use(client)

    asyncio.run(go())


@pytest.fixture
def at(server: str) -> Callable[[], Api]:
    """The API of a server that runs."""
    return lambda: Api(Settings.from_environment(), server=server, owner=True)


def test_pictures_are_edited_and_enlarged(at: Callable[[], Api], tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    Image.new("L", (64, 64), "white").save(tmp_path / "all.png")

    async def use(client: Client) -> None:
        file = {"image": str(tmp_path / "blue.png"), "mask": str(tmp_path / "all.png"), "strength": 0.5}
        edited = await client.call_tool("edit_image", SMALL | file)
        assert not edited.is_error, edited.content
        large = await client.call_tool("upscale_image", {"image": told(edited)[0]["asset_id"], "scale": 1.5})
        assert pictures(large)[0].size == (96, 96)
        data = base64.b64encode((tmp_path / "blue.png").read_bytes()).decode()
        large = await client.call_tool("upscale_image", {"image": f"data:image/png;base64,{data}"})
        assert pictures(large)[0].size == (128, 128)

    with_client(at, use)


def test_several_are_drawn_at_once_and_large_ones_are_shown_smaller(
    at: Callable[[], Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp, "MAX_INLINE_BYTES", 100)

    async def use(client: Client) -> None:
        result = await client.call_tool("generate_image", SMALL | {"n": 3})
        assert [job["seed"] for job in told(result)] == [7, 8, 9]
        assert [image.format for image in pictures(result)] == ["JPEG"] * 3

    with_client(at, use)


def test_a_slow_call_answers_with_a_job_that_can_be_viewed_and_cancelled(
    at: Callable[[], Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp, "PATIENCE_S", 0.2)

    async def use(client: Client) -> None:
        [answer] = told(await client.call_tool("generate_image", SMALL | {"steps": 1000}))
        assert answer["state"] in ("queued", "running")
        job = {"job_id": answer["job_id"]}
        await client.call_tool("cancel_job", job)
        async with asyncio.timeout(PATIENCE_S):
            while (seen := told(await client.call_tool("get_job", job)))[0]["state"] == "running":
                pass
        assert seen[0]["state"] == "cancelled"

    with_client(at, use)


def test_lists_name_models_and_samplers(at: Callable[[], Api]) -> None:
    async def use(client: Client) -> None:
        assert "mini" in told(await client.call_tool("list_models"))[0]["models"]
        assert "Euler a" in told(await client.call_tool("list_samplers"))[0]["samplers"]

    with_client(at, use)


@pytest.mark.parametrize(
    ("tool", "words", "says"),
    [
        ("generate_image", {"prompt": "x", "sampler": "Eular"}, "Euler"),
        ("generate_image", {"prompt": "x", "n": 99}, "4"),
        ("edit_image", {"prompt": "x", "image": "0" * 64}, "no picture"),
        ("edit_image", {"prompt": "x", "image": "http://127.0.0.1/x.png"}, "private network"),
        ("edit_image", {"prompt": "x", "image": "/no/such/file.png"}, "neither a URL"),
        ("get_job", {"job_id": "../../v1/files"}, "no job_id"),
        ("get_image", {"asset_id": "x"}, "no asset_id"),
    ],
)
def test_errors_reach_the_language_model(at: Callable[[], Api], tool: str, words: dict[str, Any], says: str) -> None:
    async def use(client: Client) -> None:
        result = await client.call_tool(tool, words)
        assert result.is_error
        assert says in str(result.content)

    with_client(at, use)


def test_an_unreachable_server_gives_a_clear_error() -> None:
    async def use(client: Client) -> None:
        result = await client.call_tool("list_models")
        assert result.is_error
        assert "http://127.0.0.1:1" in str(result.content)

    with_client(lambda: Api(Settings.from_environment(), server="http://127.0.0.1:1", owner=True), use)


def test_files_of_the_machine_are_not_read_for_clients_from_elsewhere(at: Callable[[], Api], tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "mine.png")

    async def use(client: Client) -> None:
        result = await client.call_tool("upscale_image", {"image": str(tmp_path / "mine.png")})
        assert result.is_error

    with_client(at, use, local=False)


@contextmanager
def over_http(api: Api) -> Generator[str, None, None]:
    """Where the MCP server is reached, in a thread of this process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = mcp_server(api, local=False).streamable_http_app()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))

        async def serve() -> None:
            async with api:
                await server.serve(sockets=[listener])

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        finally:
            server.should_exit = True
            thread.join()


def test_over_http_each_caller_has_its_own_key(keyed_server: tuple[str, dict[str, str]]) -> None:
    url, keys = keyed_server

    async def go(at: str) -> None:
        async with Client(at) as client:
            assert "API key" in str((await client.call_tool("list_models")).content)
        async with httpx2.AsyncClient(headers={"authorization": f"Bearer {keys['joe']}"}) as http:
            async with Client(streamable_http_client(at, http_client=http)) as client:
                assert "mini" in told(await client.call_tool("list_models"))[0]["models"]

    with over_http(Api(Settings.from_environment(), server=url, owner=False)) as at:
        asyncio.run(go(at))


def test_a_key_gives_access_to_its_own_pictures(keyed_server: tuple[str, dict[str, str]]) -> None:
    url, keys = keyed_server

    async def nobody(client: Client) -> None:
        assert "API key" in str((await client.call_tool("generate_image", SMALL)).content)

    async def joe(client: Client) -> None:
        assert pictures(await client.call_tool("generate_image", SMALL))

    with_client(lambda: Api(Settings.from_environment(), server=url, owner=True), nobody)
    with_client(lambda: Api(Settings.from_environment(), server=url, key=keys["joe"], owner=True), joe)


@pytest.mark.parametrize(
    ("tool", "argument", "says"),
    [
        ("generate_image", "negative", "did you mean 'negative_prompt'"),
        (
            "generate_image",
            "cfg_scale",
            "known: prompt, negative_prompt, model, seed, width, height, sampler, steps, guidance",
        ),
        ("edit_image", "mask_image", "did you mean 'image' or 'mask'"),
        ("list_models", "kind", "no such argument"),
    ],
)
def test_an_argument_that_a_tool_does_not_know_is_refused_by_name(
    at: Callable[[], Api], tool: str, argument: str, says: str
) -> None:
    async def use(client: Client) -> None:
        result = await client.call_tool(tool, SMALL | {argument: "blue", "image": "x"})
        assert result.is_error
        [part] = result.content
        assert isinstance(part, TextContent)
        assert f"'{argument}': no such argument" in part.text
        assert says in part.text

    with_client(at, use)


def test_base64_in_lines_is_a_picture_to_a_tool_and_no_name_of_a_file(at: Callable[[], Api]) -> None:
    file = BytesIO()
    Image.effect_noise((16, 16), 80).save(file, "PNG")
    lines = base64.encodebytes(file.getvalue()).decode()
    assert 255 < len(lines) < 4096, "too long for a file's name, and not for a path"

    async def use(client: Client) -> None:
        result = await client.call_tool("upscale_image", {"image": lines, "scale": 2})
        assert not result.is_error, result.content
        assert pictures(result)[0].size == (32, 32)

    with_client(at, use)
