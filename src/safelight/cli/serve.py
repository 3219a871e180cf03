"""`safelight serve`: the HTTP server, in the foreground, until Ctrl-C."""

import ipaddress
import os
from typing import Annotated

import typer

from safelight.errors import InvalidRequest, needing
from safelight.settings import Settings

STEPS_BETWEEN_PREVIEWS = 2
EXAMPLES = """\
[bold]Examples[/]
  safelight serve
  safelight keys create joe && safelight serve --host 0.0.0.0
  curl localhost:7860/v1/jobs --json '{"prompt": "a red apple"}'

Clients point at http://localhost:7860/v1 (OpenAI) or http://localhost:7860 (AUTOMATIC1111)."""


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="Serve other machines although no API key exists.")
    ] = False,
) -> None:
    """Serve pictures over HTTP: OpenAI Images, AUTOMATIC1111 and durable jobs."""
    with needing("server"):
        from safelight.serving.app.run import run
    settings = Settings.from_environment()
    if "SAFELIGHT_PREVIEW_EVERY" not in os.environ:
        settings = settings.model_copy(update={"preview_every": STEPS_BETWEEN_PREVIEWS})
    if not is_loopback(host) and not open_to_all:
        require_keys(settings, host)
    typer.echo(f"safelight on http://{host}:{port}; Ctrl-C stops it", err=True)
    run(settings, host=host, port=port)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_keys(settings: Settings, host: str) -> None:
    from safelight.database.connect import open_database
    from safelight.serving.jobs.keys import Keys

    settings.home.mkdir(parents=True, exist_ok=True)
    database = open_database(settings.database)
    try:
        if not Keys(database).exist():
            raise InvalidRequest(
                f"{host} can be reached from other machines and no API key exists: "
                "`safelight keys create NAME` makes one, --open-to-all does without"
            )
    finally:
        database.close()
