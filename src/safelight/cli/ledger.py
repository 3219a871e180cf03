"""`safelight trust ledger`: verify, export and maintain the ledger of finished pictures."""

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.trust.ledger import Ledger

EXAMPLES = """\
[bold]Examples[/]
  safelight trust ledger verify
  safelight trust ledger export --out ledger.jsonl
  safelight trust ledger verify --against ledger.jsonl
  safelight trust ledger export --since 2026-12-01 --until 2027-01-01 | jq .record.asset_id"""
SHOWN = 20
"""Problems that are printed for people; `--json` has them all."""

app = typer.Typer(
    name="ledger",
    help="What was drawn, for whom, by which model and with which marks: verify and export.",
    no_args_is_help=True,
    epilog=EXAMPLES,
)
When = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Date or time, in UTC.")]


@app.command()
def verify(
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier export, to which the ledger must still agree.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Check every row of the ledger, what lies beside it, and the checkpoints.

    Exit code 0: it is whole; 1: it is not, or cannot be read.
    """
    from safelight.trust.chain_keys import read_keys
    from safelight.trust.credentials import trusted_roots
    from safelight.trust.verify_chain import verify_chain

    with opened() as ledger:
        found = verify_chain(
            ledger.database,
            read_keys(ledger.folder),
            trusted_roots(ledger.folder),
            folder=ledger.folder,
            against=against,
        )
        pending = len(ledger.pending.paths())
    if as_json:
        said = {
            "whole": found.whole,
            "rows": found.rows,
            "pictures": found.pictures,
            "erased": found.erased,
            "checkpoints": found.checkpoints,
            "pending": pending,
            "head": found.head,
            "first_broken": found.first_broken,
            "problems": found.problems,
        }
        typer.echo(json.dumps(said))
    else:
        typer.echo(
            f"{found.rows} rows, {found.pictures} pictures, {found.erased} bodies erased, "
            f"{found.checkpoints} checkpoints hold"
        )
        if pending:
            typer.echo(f"{pending} entries wait in files, and follow with the next picture")
        for problem in found.problems[:SHOWN]:
            typer.echo(f"  {problem}")
        if (more := found.num_problems - SHOWN) > 0:
            typer.echo(f"  and {more} more")
        typer.echo("The ledger is whole." if found.whole else f"Broken from row {found.first_broken} on.")
    if not found.whole:
        raise typer.Exit(1)


@app.command()
def export(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write; it must not exist.")
    ] = None,
    since: When = None,
    until: When = None,
    words: Annotated[bool, typer.Option("--words", help="Include prompts and names of keys.")] = False,
) -> None:
    """Print the ledger as JSON lines, the last of which is a signed checkpoint.

    Keep it where nobody who can write the database can write: with `verify --against`, it shows what was removed since.
    """
    from safelight.errors import InvalidRequest
    from safelight.trust.export import export as rows

    try:
        file = sys.stdout if out is None else out.open("x", encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{out} cannot be written: {error.strerror or error}") from None
    count = 0
    with opened() as ledger:
        try:
            for row in rows(ledger, since=seconds(since), until=seconds(until), words=words):
                print(json.dumps(row, ensure_ascii=False, separators=(",", ":")), file=file)
                count += 1
        finally:
            if out is not None:
                file.close()
    if out is not None:
        typer.echo(f"{count} rows in {out}")


@app.command()
def checkpoint() -> None:
    """Sign the newest row now, and print the signed statement; keep it on another machine."""
    with opened() as ledger:
        ledger.write_pending()
        statement = ledger.checkpoint()
    typer.echo(statement or "The ledger is empty.", err=statement is None)


@app.command()
def rotate() -> None:
    """Go on with a new key of the chain; earlier rows are checked with theirs as before."""
    with opened() as ledger:
        typer.echo(f"The key is {ledger.rotate()} from now on.")


@app.command()
def retain() -> None:
    """Erase prompts and names that are older than SAFELIGHT_TRUST_LEDGER_DAYS; a server does so by itself."""
    from safelight.errors import InvalidRequest
    from safelight.settings import Settings

    if Settings.from_environment().trust_ledger_days is None:
        raise InvalidRequest("SAFELIGHT_TRUST_LEDGER_DAYS is not set: everything is kept for good")
    with opened() as ledger:
        ledger.write_pending()
        typer.echo(f"The words of {ledger.retain()} pictures are erased.")


def seconds(when: datetime | None) -> float | None:
    return None if when is None else when.replace(tzinfo=UTC).timestamp()


@contextmanager
def opened() -> Generator["Ledger", None, None]:
    from safelight.settings import Settings
    from safelight.trust.ledger import Ledger

    settings = Settings.from_environment()
    settings.make_home()
    with Ledger(settings) as ledger:
        yield ledger
