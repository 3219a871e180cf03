"""An MCP server: tools with which a language model generates, edits and views pictures.

    tool -> POST /v1/jobs -> wait -> GET /v1/files -> image content

All tools use the HTTP API: of a remote server, or of the application in this process, which is opened when a tool first
needs it and called without a socket. Jobs are durable either way.
"""

import asyncio
import base64
import inspect
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import anyio
import httpx
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import Field
from pydantic.fields import FieldInfo
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.errors import SafelightError, nearest
from safelight.regular_file import is_regular, open_regular
from safelight.serving.http.auth import TRUSTED
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.redact import caller_message
from safelight.serving.jobs.tables import ENDED
from safelight.settings import Settings
from safelight.spec import Draft
from safelight.spec.complete import choose_seed, seeds_from
from safelight.spec.interface import is_scalar, keyword, with_parameters
from safelight.version import __version__

log = logging.getLogger(__name__)

INSTRUCTIONS = """\
Generates pictures with Stable Diffusion. Every picture has an asset_id, which the other tools accept. A slow tool
answers with a job that is still queued or running: call get_job for it after a while."""
PATIENCE_S = 45.0
"""Many clients allow a tool one minute; after this time it answers with the unfinished job."""
MAX_INLINE_BYTES = 700_000
"""Clients refuse long answers, and base64 adds a third."""
MAX_INLINE_SIDE = 1280
MAX_AT_ONCE = 4
READ_ONLY = ToolAnnotations(read_only_hint=True)
GENERATES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False)

ToolContext = Context[Any, Any]
ImageArgument = Annotated[
    str,
    Field(description="An asset_id; or a picture as http(s) URL, data URL or base64; or the path of a local file."),
]
Number = Annotated[int, Field(ge=1, le=MAX_AT_ONCE, description="Number of pictures, with consecutive seeds.")]

Wildcards = Annotated[bool, Field(description="Pick {red|blue} and __colour__ in the prompt at random.")]

OF_EDITS = {"strength", "image_guidance", "replace_background"}
"""Fields of a draft that need a picture to start from."""
NO_ARGUMENTS = {
    *("init", "mask"),  # given as `image` and `mask`
    *("guidance_rescale", "clip_skip", "determinism", "pag_scale", "sag_scale", "vae", "text_encoder"),
    *("refiner", "refiner_switch", "fit", "scale", "mask_blur", "mask_invert", "only_masked", "padding", "soft_mask"),
}
"""Fields of a draft that no tool takes, since a language model reads every argument of every tool. A new field of one
word or number is an argument of both tools unless it is listed here or above."""
DESCRIPTIONS = {"model": "A name of list_models.", "sampler": "A name of list_samplers."}
"""In place of those of the draft's fields."""


def arguments(*, of_edits: bool = False) -> list[inspect.Parameter]:
    """The draft's fields that are one word or number, as arguments of a tool."""
    left_out = NO_ARGUMENTS if of_edits else NO_ARGUMENTS | OF_EDITS
    fields = {name: field for name, field in Draft.model_fields.items() if name not in left_out and is_scalar(field)}
    return [keyword(name, *argument(name, field)) for name, field in fields.items()]


def argument(name: str, field: FieldInfo) -> tuple[Any, Any]:
    """Its type and its default."""
    description = DESCRIPTIONS.get(name, (field.description or "").replace("`init`", "`image`"))
    default = inspect.Parameter.empty if field.is_required() else field.default
    return Annotated[field.rebuild_annotation(), Field(description=description)], default


class Api:
    """A client of the HTTP API: of the server at `server`, or else of an application in this process."""

    def __init__(self, settings: Settings, *, server: str | None = None, key: str | None = None, owner: bool) -> None:
        """With `owner`, callers are the user who started this process, so the application needs no key."""
        self.settings = settings
        self.server = server
        self.key = key
        self.owner = owner
        self.opening = asyncio.Lock()
        self.client: httpx.AsyncClient | None = None
        self.parts = AsyncExitStack()

    async def open_client(self) -> httpx.AsyncClient:
        async with self.opening:
            if self.client is None:
                headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
                if self.server:
                    client = httpx.AsyncClient(base_url=self.server, headers=headers, timeout=PATIENCE_S + 30)
                else:
                    transport = httpx.ASGITransport(await self.application())
                    client = httpx.AsyncClient(base_url="http://localhost", headers=headers, transport=transport)
                self.client = await self.parts.enter_async_context(client)
            return self.client

    async def application(self) -> ASGIApp:
        from safelight.serving.app.app import create_app

        app = create_app(self.settings)
        await self.parts.enter_async_context(app.router.lifespan_context(app))
        return trust_caller(app) if self.owner else app

    async def request(self, method: str, path: str, context: ToolContext, **options: Any) -> httpx.Response:
        """Send a request; raises ToolError with the server's message if it refuses."""
        try:
            answer = await (await self.open_client()).request(method, path, headers=key_headers(context), **options)
        except httpx.HTTPError as error:
            raise ToolError(f"{self.server}: {error or type(error).__name__}") from error
        except SafelightError as error:
            raise ToolError(str(error) if self.owner else caller_message(error, self.settings.home)) from error
        if answer.is_error:
            raise ToolError(error_message(answer))
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.parts.aclose()


def trust_caller(app: ASGIApp) -> ASGIApp:
    """Wrap the application so that it trusts the caller, the user of this process. Networks cannot set TRUSTED."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, TRUSTED: Caller()}, receive, send)

    return call


def key_headers(context: ToolContext) -> dict[str, str]:
    """Over HTTP, the headers with the caller's own API key, which are forwarded to the API."""
    request = context.request_context.request
    given = {} if request is None else request.headers
    return {name: given[name] for name in ("authorization", "x-api-key") if name in given}


def error_message(answer: httpx.Response) -> str:
    try:
        error_body = answer.json()
        return str(error_body["error"]["message"] if isinstance(error_body["error"], dict) else error_body["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"


async def serve(api: Api, *, http: tuple[str, int] | None = None) -> None:
    """Serve until the client closes stdin, or with `http`, for ever on that host and port."""
    async with api:
        server = mcp_server(api, local=http is None)
        if http is None:
            await server.run_stdio_async()
        else:
            host, port = http
            await server.run_streamable_http_async(host=host, port=port)


def mcp_server(api: Api, *, local: bool) -> MCPServer[Any]:
    """The server and its tools; with `local`, the client is the user of this machine and may name files."""
    server: MCPServer[Any] = MCPServer(
        "safelight", title="safelight", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING"
    )

    @server.tool(annotations=GENERATES)
    @with_parameters(arguments())
    async def generate_image(
        ctx: ToolContext, *, n: Number = 1, wildcards: Wildcards = False, **fields: Any
    ) -> CallToolResult:
        """Generate one or more pictures from a prompt."""
        return await generate(api, ctx, fields | {"expand": "wildcards" if wildcards else None}, n=n)

    @server.tool(annotations=GENERATES)
    @with_parameters(arguments(of_edits=True))
    async def edit_image(
        ctx: ToolContext,
        image: ImageArgument,
        prompt: Annotated[str, Field(description="What the picture, or its masked part, should show.")],
        mask: Annotated[
            ImageArgument | None, Field(description="White areas are redrawn, black areas are kept.")
        ] = None,
        *,
        n: Number = 1,
        **fields: Any,
    ) -> CallToolResult:
        """Redraw a picture from another one, all of it or where a mask is white."""
        fields |= {"prompt": prompt, "init": await stored_id(api, ctx, image, local=local)}
        if mask is not None:
            fields["mask"] = await stored_id(api, ctx, mask, local=local)
        return await generate(api, ctx, fields, n=n)

    @server.tool(annotations=GENERATES)
    async def upscale_image(
        ctx: ToolContext,
        image: ImageArgument,
        scale: Annotated[float, Field(description="How many times as large, above 1 and up to 8.")] = 2.0,
        method: Annotated[str, Field(description="lanczos, or a network such as realesrgan-x4plus.")] = "lanczos",
    ) -> CallToolResult:
        """Upscale a picture."""
        body = {"init": await stored_id(api, ctx, image, local=local), "scale": scale, "method": method}
        return await wait_for_jobs(api, ctx, [(await api.request("POST", "/v1/upscales", ctx, json=body)).json()])

    @server.tool(annotations=READ_ONLY)
    async def list_models(ctx: ToolContext) -> CallToolResult:
        """List the models by name."""
        found = (await api.request("GET", "/sdapi/v1/sd-models", ctx)).json()
        return json_result({"models": [model["model_name"] for model in found]})

    @server.tool(annotations=READ_ONLY)
    async def list_samplers(ctx: ToolContext) -> CallToolResult:
        """List the samplers by name."""
        found = (await api.request("GET", "/sdapi/v1/samplers", ctx)).json()
        return json_result({"samplers": [sampler["name"] for sampler in found]})

    @server.tool(annotations=READ_ONLY)
    async def get_job(ctx: ToolContext, job_id: str) -> CallToolResult:
        """The state of a job and, when it is done, its picture."""
        return await describe_jobs(api, ctx, [(await api.request("GET", job_path(job_id), ctx)).json()])

    @server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True))
    async def cancel_job(ctx: ToolContext, job_id: str) -> CallToolResult:
        """Stop a job at its next step."""
        return json_result(summary((await api.request("POST", f"{job_path(job_id)}/cancel", ctx)).json()))

    @server.tool(annotations=READ_ONLY)
    async def get_image(ctx: ToolContext, asset_id: str) -> CallToolResult:
        """View a picture by its asset_id."""
        return CallToolResult(content=await picture(api, ctx, asset_id))

    server.middleware.append(refuse_unknown_arguments(server))
    # MCP calls them by name.
    _ = generate_image, edit_image, upscale_image, list_models, list_samplers, get_job, cancel_job, get_image
    return server


def refuse_unknown_arguments(server: MCPServer[Any]) -> ServerMiddleware[Any]:
    """Middleware that refuses arguments that a tool does not have, which the mcp package would ignore."""

    async def check_arguments(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        match ctx.method, ctx.params:
            case "tools/call", {"name": str(name), "arguments": Mapping() as given}:
                names: Mapping[str, Any] = given
                tools = {tool.name: list(tool.input_schema["properties"]) for tool in await server.list_tools()}
                if name in tools and (
                    problems := [describe_unknown(one, tools[name]) for one in names if one not in tools[name]]
                ):
                    return CallToolResult(content=[TextContent(type="text", text="; ".join(problems))], is_error=True)
            case _:
                pass
        return await call_next(ctx)

    return check_arguments


def describe_unknown(argument: str, known: list[str]) -> str:
    return f"{argument[:60]!r}: no such argument{nearest(argument[:60], known)}; known: {', '.join(known)}"


async def generate(api: Api, context: ToolContext, fields: dict[str, Any], *, n: int) -> CallToolResult:
    given = {name: value for name, value in fields.items() if value is not None}
    bodies = [given | {"seed": seed} for seed in seeds_from(given.get("seed", choose_seed()), n)]
    return await wait_for_jobs(
        api, context, (await api.request("POST", "/v1/jobs", context, json=bodies)).json()["data"]
    )


async def wait_for_jobs(api: Api, context: ToolContext, jobs: Sequence[dict[str, Any]]) -> CallToolResult:
    """Wait for the jobs up to PATIENCE_S; answer with their states and pictures. If cancelled, cancel the jobs."""
    jobs = list(jobs)
    deadline, reported = time.monotonic() + PATIENCE_S, 0
    try:
        while time.monotonic() < deadline and (open_jobs := [job for job in jobs if job["state"] not in ENDED]):
            first = open_jobs[0]
            answer = await api.request("GET", f"{job_path(first['id'])}/wait", context, params={"timeout_s": 1})
            jobs[jobs.index(first)] = answer.json()
            done = sum(job["step"] for job in jobs)
            if done > reported:  # the protocol wants progress to increase
                await context.report_progress(done, sum(job["total_steps"] for job in jobs))
                reported = done
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            for job in jobs:
                await api.request("POST", f"{job_path(job['id'])}/cancel", context)
        raise
    return await describe_jobs(api, context, jobs)


async def describe_jobs(api: Api, context: ToolContext, jobs: Sequence[dict[str, Any]]) -> CallToolResult:
    content: list[ContentBlock] = []
    for job in jobs:
        content += json_result(summary(job)).content
        if job["asset_id"]:
            content += await picture(api, context, job["asset_id"])
    failed = all(job["state"] in ("failed", "cancelled", "expired") for job in jobs)
    return CallToolResult(content=content, is_error=failed)


def summary(job: dict[str, Any]) -> dict[str, Any]:
    """The fields of a job that are useful to a language model, without its own input."""
    spec = job["spec"]
    fields = {"job_id": job["id"], "state": job["state"], "asset_id": job["asset_id"]}
    fields |= {name: spec[name] for name in ("seed", "width", "height", "steps", "sampler", "model") if name in spec}
    match job["state"]:
        case "queued" | "running":
            fields |= {"position": job["position"], "step": job["step"], "total_steps": job["total_steps"]}
        case "done":
            fields["seconds"] = round(job["seconds"], 2)
        case _:
            fields["error"] = job["error"]
    return {name: value for name, value in fields.items() if value is not None}


def json_result(value: Any) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=json.dumps(value, ensure_ascii=False))])


async def picture(api: Api, context: ToolContext, asset_id: str) -> list[ContentBlock]:
    if not re.fullmatch(r"[0-9a-f]{64}", asset_id):
        raise ToolError(f"{asset_id!r} is no asset_id: an asset_id is the 64 hex digits that a job reports")
    answer = await api.request("GET", f"/v1/files/{asset_id}", context)
    data, kind = answer.content, answer.headers["content-type"]
    if len(data) > MAX_INLINE_BYTES:
        small = await api.request("GET", f"/v1/files/{asset_id}?max_side={MAX_INLINE_SIDE}", context)
        data, kind = small.content, small.headers["content-type"]
    return [ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=kind)]


async def stored_id(api: Api, context: ToolContext, image: str, *, local: bool) -> str:
    """The asset_id of a picture, which is uploaded first if necessary."""
    if re.fullmatch(r"[0-9a-f]{64}", image):
        return image
    try:
        max_bytes = api.settings.max_file_bytes
        data = await asyncio.to_thread(read, image, max_bytes) if local else None
        data = data or await fetch_picture(image, max_bytes=max_bytes)
    except (SafelightError, OSError) as error:
        raise ToolError(str(error)) from error
    return (await api.request("POST", "/v1/files", context, files={"file": ("picture", data)})).json()["id"]


def read(path: str, max_bytes: int) -> bytes | None:
    """The bytes of a local file, or None if there is none of that name."""
    if len(path) > 4096 or not is_regular(Path(path)):
        return None
    with open_regular(Path(path)) as file:
        return file.read(max_bytes + 1)  # one byte more, so that a larger file is refused


def job_path(job_id: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", job_id):
        raise ToolError(f"{job_id!r} is no job_id: a job_id is the 32 hex digits from the answer of a tool")
    return f"/v1/jobs/{job_id}"
