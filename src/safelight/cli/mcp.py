"""`safelight mcp`: tools for language models, over the Model Context Protocol."""

import asyncio
import logging.config
from typing import Annotated

import typer

from safelight.cli.serve import NoKeys, guarded, is_loopback
from safelight.errors import InvalidRequest, needing
from safelight.settings import Settings

EXAMPLES = """\
[bold]Examples[/]
  safelight mcp
  safelight mcp --server http://gpu-box:7860 --key sl-...
  safelight mcp --http --port 7861 --no-keys
  claude mcp add safelight -- safelight mcp

A client starts the first by itself and speaks to it over stdin and stdout."""


def mcp(
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP on /mcp instead of stdin and stdout.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on, with --http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="With --http.")] = 7861,
    no_keys: NoKeys = False,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Draw on this safelight server instead of in this process.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="SAFELIGHT_KEY", help="API key of that server.", show_envvar=True)
    ] = None,
) -> None:
    """Let language models draw, edit and look at pictures (MCP)."""
    with needing("server", "mcp"):
        from safelight.serving.http.log import LOGGING
        from safelight.serving.mcp.mcp import Api, serve
    settings = Settings.from_environment()
    if http:
        if server is None:
            settings = guarded(settings, host=host, no_keys=no_keys)
        elif key is not None and not is_loopback(host):
            raise InvalidRequest(f"{host} can be reached by others, who would draw with your key: leave out --key")
    # stdout belongs to the protocol; what happened goes to stderr.
    logging.config.dictConfig(LOGGING)
    # Requests within this process are told by what they do.
    logging.getLogger("safelight.serving.http.access_log").setLevel("WARNING")
    asyncio.run(serve(Api(settings, server=server, key=key, owner=not http), http=(host, port) if http else None))
