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
  safelight serve --no-keys
  safelight keys create joe && safelight serve --host 0.0.0.0
  curl localhost:7860/v1/jobs --json '{"prompt": "a red apple"}'

Clients point at http://localhost:7860/v1 (OpenAI) or http://localhost:7860 (AUTOMATIC1111)."""


NoKeys = Annotated[bool, typer.Option("--no-keys", help="Accept requests without an API key from this machine.")]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses a free port.")] = 7860,
    no_keys: NoKeys = False,
) -> None:
    """Serve pictures over HTTP: OpenAI Images, AUTOMATIC1111 and durable jobs."""
    with needing("server"):
        from safelight.serving.app.run import run
    settings = Settings.from_environment()
    if "SAFELIGHT_PREVIEW_EVERY" not in os.environ:
        settings = settings.model_copy(update={"preview_every": STEPS_BETWEEN_PREVIEWS})
    settings = require_safe_access(settings, host=host, no_keys=no_keys)

    def ready(port: int) -> None:
        typer.echo(f"safelight on http://{host}:{port}; Ctrl-C stops it", err=True)

    run(settings, host=host, port=port, ready=ready)


def require_safe_access(settings: Settings, *, host: str, no_keys: bool) -> Settings:
    """The settings with `no_keys`, if they are safe on this host.

    Raises:
        InvalidRequest: requests without a key could come from other machines, or keys are required but none exists.
    """
    settings = settings.model_copy(update={"no_keys": settings.no_keys or no_keys})
    if settings.no_keys and not is_loopback(host):
        raise InvalidRequest(f"--no-keys: {host} is reachable from other machines; leave out --no-keys or --host")
    if not settings.no_keys:
        require_keys(settings)
    return settings


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_keys(settings: Settings) -> None:
    from safelight.database.connect import open_database
    from safelight.serving.jobs.keys import Keys

    settings.make_home()
    database = open_database(settings.database)
    try:
        if not Keys(database).exist():
            raise InvalidRequest(
                "no API key exists: `safelight keys create NAME` makes one; --no-keys lets this "
                "machine use the server without one"
            )
    finally:
        database.close()
