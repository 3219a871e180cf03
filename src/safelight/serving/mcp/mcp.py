"""An MCP server: tools with which a language model draws, edits and looks at pictures.

    tool -> POST /v1/jobs -> wait -> GET /v1/files -> image content

There is one way to draw, and it is HTTP: to a server that runs elsewhere, or to the application in this process, which
is opened at the first tool that needs it and reached without a socket. Jobs are durable either way.
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
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import anyio
import httpx
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from PIL import Image
from pydantic import Field
from pydantic.fields import FieldInfo
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.errors import SafelightError, nearest
from safelight.regular_file import is_regular, open_regular
from safelight.serving.http.auth import TRUSTED
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.jobs.keys import Caller
from safelight.serving.jobs.places import told_to_strangers
from safelight.serving.jobs.tables import ENDED
from safelight.settings import Settings
from safelight.spec import Draft
from safelight.spec.complete import choose_seed, seeds_from
from safelight.spec.interface import is_scalar, keyword, with_parameters
from safelight.version import __version__

log = logging.getLogger(__name__)

INSTRUCTIONS = """\
Draws pictures with Stable Diffusion. Every picture has an asset_id, by which the other tools name it. A tool that
takes long answers with a job that is still queued or running: ask get_job for it after a while."""
PATIENCE_S = 45.0
"""Many clients give a tool a minute; what takes longer is answered as a job under way."""
MAX_INLINE_BYTES = 700_000
"""Clients refuse long answers, and base64 makes them a third longer."""
MAX_INLINE_SIDE = 1280
MAX_AT_ONCE = 4
LOOKS = ToolAnnotations(read_only_hint=True)
DRAWS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False)

Ask = Context[Any, Any]
ImageArgument = Annotated[
    str,
    Field(description="An asset_id; or a picture as http(s) URL, data URL or base64; or the path of a local file."),
]
Number = Annotated[int, Field(ge=1, le=MAX_AT_ONCE, description="How many pictures, of seeds that follow each other.")]

Wildcards = Annotated[bool, Field(description="Choose by lot from {red|blue} and __colour__ in the prompt.")]

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
    """The HTTP API: of the server at `server`, or else of an application of our own, opened when first used."""

    def __init__(self, settings: Settings, *, server: str | None = None, key: str | None = None, owner: bool) -> None:
        """`owner`: callers are whoever started this process, so that an application of our own asks for no key."""
        self.settings = settings
        self.server = server
        self.key = key
        self.owner = owner
        self.opening = asyncio.Lock()
        self.client: httpx.AsyncClient | None = None
        self.parts = AsyncExitStack()

    async def opened(self) -> httpx.AsyncClient:
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
        return trusting(app) if self.owner else app

    async def ask(self, method: str, path: str, ask: Ask, **how: Any) -> httpx.Response:
        """Raises ToolError with the server's own words where it refuses."""
        try:
            answer = await (await self.opened()).request(method, path, headers=passed_on(ask), **how)
        except httpx.HTTPError as error:
            raise ToolError(f"{self.server}: {error or type(error).__name__}") from error
        except SafelightError as error:
            raise ToolError(str(error) if self.owner else told_to_strangers(error, self.settings.home)) from error
        if answer.is_error:
            raise ToolError(words_of(answer))
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.parts.aclose()


def trusting(app: ASGIApp) -> ASGIApp:
    """The application as seen by the person whose process this is. The mark cannot come from a network."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, TRUSTED: Caller()}, receive, send)

    return call


def passed_on(ask: Ask) -> dict[str, str]:
    """Over HTTP, a caller's own key goes on to the API, which knows what it may do."""
    request = ask.request_context.request
    given = {} if request is None else request.headers
    return {name: given[name] for name in ("authorization", "x-api-key") if name in given}


def words_of(answer: httpx.Response) -> str:
    try:
        said = answer.json()
        return str(said["error"]["message"] if isinstance(said["error"], dict) else said["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"


async def serve(api: Api, *, http: tuple[str, int] | None = None) -> None:
    """Until the client closes stdin, or for ever on that host and port."""
    async with api:
        server = mcp_server(api, local=http is None)
        if http is None:
            await server.run_stdio_async()
        else:
            host, port = http
            await server.run_streamable_http_async(host=host, port=port)


def mcp_server(api: Api, *, local: bool) -> MCPServer[Any]:
    """`local`: the client is on this machine and ours, so it may name files."""
    server: MCPServer[Any] = MCPServer(
        "safelight", title="safelight", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING"
    )

    @server.tool(annotations=DRAWS)
    @with_parameters(arguments())
    async def generate_image(ctx: Ask, *, n: Number = 1, wildcards: Wildcards = False, **fields: Any) -> CallToolResult:
        """Draw one or more pictures from words."""
        return await draw(api, ctx, fields | {"expand": "wildcards" if wildcards else None}, n=n)

    @server.tool(annotations=DRAWS)
    @with_parameters(arguments(of_edits=True))
    async def edit_image(
        ctx: Ask,
        image: ImageArgument,
        prompt: Annotated[str, Field(description="What the picture, or its masked part, shall show.")],
        mask: Annotated[ImageArgument | None, Field(description="White is drawn anew, black is kept.")] = None,
        *,
        n: Number = 1,
        **fields: Any,
    ) -> CallToolResult:
        """Draw a picture anew from another one, all of it or where a mask is white."""
        fields |= {"prompt": prompt, "init": await kept(api, ctx, image, local=local)}
        if mask is not None:
            fields["mask"] = await kept(api, ctx, mask, local=local)
        return await draw(api, ctx, fields, n=n)

    @server.tool(annotations=DRAWS)
    async def upscale_image(
        ctx: Ask,
        image: ImageArgument,
        scale: Annotated[float, Field(description="How many times as large, above 1 and up to 8.")] = 2.0,
        method: Annotated[str, Field(description="lanczos, or a network such as realesrgan-x4plus.")] = "lanczos",
    ) -> CallToolResult:
        """Make a picture larger."""
        body = {"init": await kept(api, ctx, image, local=local), "scale": scale, "method": method}
        return await shown(api, ctx, [(await api.ask("POST", "/v1/upscales", ctx, json=body)).json()])

    @server.tool(annotations=LOOKS)
    async def list_models(ctx: Ask) -> CallToolResult:
        """The models that can draw, by name."""
        found = (await api.ask("GET", "/sdapi/v1/sd-models", ctx)).json()
        return said({"models": [model["model_name"] for model in found]})

    @server.tool(annotations=LOOKS)
    async def list_samplers(ctx: Ask) -> CallToolResult:
        """The samplers, by the names they are known by."""
        found = (await api.ask("GET", "/sdapi/v1/samplers", ctx)).json()
        return said({"samplers": [sampler["name"] for sampler in found]})

    @server.tool(annotations=LOOKS)
    async def get_job(ctx: Ask, job_id: str) -> CallToolResult:
        """How a job stands; when it is done, its picture."""
        return await described(api, ctx, [(await api.ask("GET", job_path(job_id), ctx)).json()])

    @server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True))
    async def cancel_job(ctx: Ask, job_id: str) -> CallToolResult:
        """Stop a job at its next step."""
        return said(summary((await api.ask("POST", f"{job_path(job_id)}/cancel", ctx)).json()))

    @server.tool(annotations=LOOKS)
    async def get_image(ctx: Ask, asset_id: str) -> CallToolResult:
        """A picture, by its asset_id."""
        return CallToolResult(content=await picture(api, ctx, asset_id))

    server.middleware.append(refusing_unknown_arguments(server))
    # They are reached by name.
    _ = generate_image, edit_image, upscale_image, list_models, list_samplers, get_job, cancel_job, get_image
    return server


def refusing_unknown_arguments(server: MCPServer[Any]) -> ServerMiddleware[Any]:
    """A tool's arguments are those that it lists: the package itself would pass over any other, and draw without it."""

    async def look(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        match ctx.method, ctx.params:
            case "tools/call", {"name": str(name), "arguments": Mapping() as given}:
                names: Mapping[str, Any] = given
                tools = {tool.name: list(tool.input_schema["properties"]) for tool in await server.list_tools()}
                if name in tools and (faults := [unknown(one, tools[name]) for one in names if one not in tools[name]]):
                    return CallToolResult(content=[TextContent(type="text", text="; ".join(faults))], is_error=True)
            case _:
                pass
        return await call_next(ctx)

    return look


def unknown(argument: str, known: list[str]) -> str:
    return f"{argument[:60]!r}: no such argument{nearest(argument[:60], known)}; known: {', '.join(known)}"


async def draw(api: Api, ask: Ask, fields: dict[str, Any], *, n: int) -> CallToolResult:
    given = {name: value for name, value in fields.items() if value is not None}
    asked = [given | {"seed": seed} for seed in seeds_from(given.get("seed", choose_seed()), n)]
    return await shown(api, ask, (await api.ask("POST", "/v1/jobs", ask, json=asked)).json()["data"])


async def shown(api: Api, ask: Ask, jobs: Sequence[dict[str, Any]]) -> CallToolResult:
    """The pictures once they are drawn, or the jobs as they are when patience ends; nobody waiting, nobody drawing."""
    jobs = list(jobs)
    deadline, reported = time.monotonic() + PATIENCE_S, 0
    try:
        while time.monotonic() < deadline and (open_jobs := [job for job in jobs if job["state"] not in ENDED]):
            first = open_jobs[0]
            answer = await api.ask("GET", f"{job_path(first['id'])}/wait", ask, params={"timeout_s": 1})
            jobs[jobs.index(first)] = answer.json()
            done = sum(job["step"] for job in jobs)
            if done > reported:  # the protocol wants progress to increase
                await ask.report_progress(done, sum(job["total_steps"] for job in jobs))
                reported = done
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            for job in jobs:
                await api.ask("POST", f"{job_path(job['id'])}/cancel", ask)
        raise
    return await described(api, ask, jobs)


async def described(api: Api, ask: Ask, jobs: Sequence[dict[str, Any]]) -> CallToolResult:
    content: list[ContentBlock] = []
    for job in jobs:
        content += said(summary(job)).content
        if job["asset_id"]:
            content += await picture(api, ask, job["asset_id"])
    failed = all(job["state"] in ("failed", "cancelled", "expired") for job in jobs)
    return CallToolResult(content=content, is_error=failed)


def summary(job: dict[str, Any]) -> dict[str, Any]:
    """What a model may want to know, without what it said itself."""
    spec = job["spec"]
    told = {"job_id": job["id"], "state": job["state"], "asset_id": job["asset_id"]}
    told |= {name: spec[name] for name in ("seed", "width", "height", "steps", "sampler", "model") if name in spec}
    match job["state"]:
        case "queued" | "running":
            told |= {"position": job["position"], "step": job["step"], "total_steps": job["total_steps"]}
        case "done":
            told["seconds"] = round(job["seconds"], 2)
        case _:
            told["error"] = job["error"]
    return {name: value for name, value in told.items() if value is not None}


def said(what: Any) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=json.dumps(what, ensure_ascii=False))])


async def picture(api: Api, ask: Ask, asset_id: str) -> list[ContentBlock]:
    if not re.fullmatch(r"[0-9a-f]{64}", asset_id):
        raise ToolError(f"{asset_id!r} is no asset_id: those are the 64 hex digits that a job reports")
    answer = await api.ask("GET", f"/v1/files/{asset_id}", ask)
    data, kind = answer.content, answer.headers["content-type"]
    if len(data) > MAX_INLINE_BYTES:
        data, kind = await asyncio.to_thread(smaller, data), "image/jpeg"
    return [ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=kind)]


def smaller(data: bytes) -> bytes:
    """A JPEG to be looked at; the asset stays as it is."""
    with Image.open(BytesIO(data)) as image:
        image.thumbnail((MAX_INLINE_SIDE, MAX_INLINE_SIDE))
        file = BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


async def kept(api: Api, ask: Ask, image: str, *, local: bool) -> str:
    """The asset_id of a picture, stored first where it is not."""
    if re.fullmatch(r"[0-9a-f]{64}", image):
        return image
    try:
        most = api.settings.max_file_bytes
        data = await asyncio.to_thread(read, image, most) if local else None
        data = data or await fetch_picture(image, max_bytes=most)
    except (SafelightError, OSError) as error:
        raise ToolError(str(error)) from error
    return (await api.ask("POST", "/v1/files", ask, files={"file": ("picture", data)})).json()["id"]


def read(path: str, max_bytes: int) -> bytes | None:
    """The bytes of the file of that name, if there is one."""
    if len(path) > 4096 or not is_regular(Path(path)):
        return None
    with open_regular(Path(path)) as file:
        return file.read(max_bytes + 1)  # one too many is refused as too large


def job_path(job_id: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", job_id):
        raise ToolError(f"{job_id!r} is no job_id: those are the 32 hex digits that a drawing tool answered")
    return f"/v1/jobs/{job_id}"
