"""`safelight forget`: erase everything of an API key, and sign a report of it."""

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.serving.jobs.forget import Counts

EXAMPLES = """\
[bold]Examples[/]
  safelight forget joe --dry-run
  safelight forget joe
  safelight forget 3f9a21c0 --yes --out forgotten.json"""


def forget(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Name or id, as `safelight keys list` shows them.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be erased.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The signed report; default: in SAFELIGHT_HOME/reports."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Erase an API key with its jobs, prompts and pictures, for good.

    Pictures that another key holds too stay. Rows of the ledger stay without prompt and name. Backups, and logs and
    pictures that are elsewhere, are out of reach.
    """
    from safelight.assets.store import AssetStore
    from safelight.database.connect import open_database
    from safelight.errors import InvalidRequest, needing
    from safelight.settings import Settings
    from safelight.trust.ledger import Ledger
    from safelight.trust.statements import StatementSigner

    with needing("server"):
        from safelight.serving.jobs.forget import OUT_OF_REACH, Forgetting, find_tenant
        from safelight.serving.jobs.queue import JobQueue
    settings = Settings.from_environment()
    settings.make_home()
    database = open_database(settings.database)
    try:
        ledger = Ledger(settings, database)
        forgetting = Forgetting(
            find_tenant(database, key), JobQueue(database), AssetStore(settings.blobs), ledger, home=settings.home
        )
        counts = forgetting.count()
        if not as_json:
            describe(counts)
        if dry_run:
            if as_json:
                typer.echo(json.dumps(said(counts)))
            return
        if not yes and as_json:
            raise InvalidRequest("--json asks nobody: add --yes")
        if not yes:
            typer.confirm("Erase all of it, for good?", abort=True)
        signer = StatementSigner.open(settings)
        signer.sign({"kind": "trial"})  # before anything is erased
        path = out or report_path(settings.home)
        with created(path) as file:
            report = forgetting.erase().report(now=time.time())
            written: dict[str, object] = {"report": report, "statement": None}
            try:
                written["statement"] = signer.sign(report)
            finally:
                json.dump(written, file, indent=2)
    finally:
        database.close()
    if as_json:
        typer.echo(json.dumps({"report": str(path), **report}))
        return
    typer.echo(f"Erased. Signed report: {path}")
    typer.echo("Out of reach: " + "; ".join(OUT_OF_REACH) + ".")


@contextmanager
def created(path: Path) -> Generator[TextIO, None, None]:
    """A new file; it is removed again if nothing was written to it."""
    from safelight.errors import InvalidRequest

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x", encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"the report {path} cannot be written: {error.strerror or error}") from None
    try:
        with file:
            yield file
    finally:
        if path.stat().st_size == 0:
            path.unlink()


def describe(counts: "Counts") -> None:
    typer.echo(
        f"{counts.jobs} jobs ({counts.live_jobs} of them queued or running), {counts.events} events, "
        f"{counts.usage} usage rows, {counts.runs} training runs"
    )
    typer.echo(f"{counts.pictures} pictures; {counts.pictures_kept} more stay, which others hold too")
    typer.echo(
        f"{counts.ledger_rows} rows of the ledger, which stay without {counts.ledger_bodies} prompts and likenesses"
    )


def said(counts: "Counts") -> dict[str, int]:
    from dataclasses import asdict

    return asdict(counts)


def report_path(home: Path) -> Path:
    return home / "reports" / f"forgotten-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.json"
