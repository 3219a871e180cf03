"""`safelight keys`: the server's API keys and their limits."""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from safelight.errors import needing
from safelight.settings import Settings

if TYPE_CHECKING:
    from safelight.serving.jobs.keys import Keys
    from safelight.serving.jobs.tables import KeyRow

app = typer.Typer(name="keys", help="API keys of the server: create, list, revoke.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key, shown in lists.")],
    admin: Annotated[bool, typer.Option("--admin", help="May see and cancel the jobs of all keys.")] = False,
    per_minute: Annotated[int | None, typer.Option(min=1, help="Maximum pictures in any sixty seconds.")] = None,
    pictures_per_day: Annotated[int | None, typer.Option(min=1, help="Maximum pictures per day, UTC.")] = None,
    compute_s_per_day: Annotated[float | None, typer.Option(min=1, help="Maximum network seconds per day.")] = None,
    priority: Annotated[
        int, typer.Option(min=-100, max=100, help="Highest priority of its jobs; larger goes first.")
    ] = 0,
) -> None:
    """Create a key and show it once."""
    with open_keys() as keys:
        key = keys.create(
            name,
            scopes=("draw", "admin") if admin else ("draw",),
            per_minute=per_minute,
            pictures_per_day=pictures_per_day,
            compute_s_per_day=compute_s_per_day,
            priority=priority,
        )
    typer.echo("This key is shown only now:", err=True)
    typer.echo(key)


@app.command("list")
def index() -> None:
    """List the keys, without their secrets, which are not stored."""
    table = Table("name", "id", "scopes", "limits", "priority", "since", "state")
    with open_keys() as keys:
        for row in keys.list():
            since = datetime.fromtimestamp(row.created, UTC).date().isoformat()
            state = "in use" if row.revoked is None else "revoked"
            table.add_row(row.name, row.id, row.scopes, limits_of(row), str(row.priority), since, state)
    Console().print(table)


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="As `safelight keys list` shows it.")]) -> None:
    """Stop a key from working; its jobs and pictures stay."""
    with open_keys() as keys:
        keys.revoke(name)
    typer.echo(f"The key {name} no longer works.")


def limits_of(row: "KeyRow") -> str:
    limits = {
        "a minute": row.per_minute,
        "a day": row.pictures_per_day,
        "s a day": row.compute_s_per_day,
    }
    return ", ".join(f"{limit:g} {unit}" for unit, limit in limits.items() if limit is not None) or "none"


@app.command()
def webhook_secret() -> None:
    """Show the secret that signs webhooks, for their receivers."""
    with open_keys() as keys:
        typer.echo(keys.secret("webhooks").hex())


@contextmanager
def open_keys() -> Generator["Keys", None, None]:
    with needing("server"):
        from safelight.database.connect import open_database
        from safelight.serving.jobs.keys import Keys
    settings = Settings.from_environment()
    settings.make_home()
    database = open_database(settings.database)
    try:
        yield Keys(database)
    finally:
        database.close()
