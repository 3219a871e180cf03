"""`safelight mcp`: tools for language models, over the Model Context Protocol."""

import asyncio
import logging.config
from typing import Annotated

import typer

from safelight.cli.serve import NoKeys, is_loopback, require_safe_access
from safelight.errors import InvalidRequest, needing
from safelight.settings import Settings

EXAMPLES = """\
[bold]Examples[/]
  safelight mcp
  safelight mcp --server http://gpu-box:7860 --key sl-...
  safelight mcp --http --port 7861 --no-keys
  claude mcp add safelight -- safelight mcp

A client starts the first itself and communicates over stdin and stdout."""


def mcp(
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP on /mcp instead of stdin and stdout.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on, with --http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="With --http.")] = 7861,
    no_keys: NoKeys = False,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Use this safelight server instead of this process.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="SAFELIGHT_KEY", help="API key of that server.", show_envvar=True)
    ] = None,
) -> None:
    """Let language models generate, edit and view pictures (MCP)."""
    with needing("server", "mcp"):
        from safelight.serving.http.log import LOGGING
        from safelight.serving.mcp.mcp import Api, serve
    settings = Settings.from_environment()
    if http:
        if server is None:
            settings = require_safe_access(settings, host=host, no_keys=no_keys)
        elif key is not None and not is_loopback(host):
            raise InvalidRequest(f"{host} is reachable by others, who could use your key: leave out --key")
    # stdout belongs to the protocol; logs go to stderr.
    logging.config.dictConfig(LOGGING)
    # Requests within this process need no access log: their effects are logged.
    logging.getLogger("safelight.serving.http.access_log").setLevel("WARNING")
    asyncio.run(serve(Api(settings, server=server, key=key, owner=not http), http=(host, port) if http else None))
