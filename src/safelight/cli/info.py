"""`safelight info`: what a picture says of how it was made, whoever made it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.assets.read_metadata import Metadata

EXAMPLES = """\
[bold]Examples[/]
  safelight info pictures/a-red-apple-7.png
  safelight info from-automatic1111.png --json"""


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG, WebP or AVIF picture.")],
    as_json: options.Json = False,
) -> None:
    """Show how a picture was made.

    Reads what safelight, AUTOMATIC1111, InvokeAI, ComfyUI and stable-diffusion.cpp write into their pictures.
    """
    from safelight.assets.read_metadata import read_metadata
    from safelight.settings import Settings

    settings = Settings.from_environment()
    found = read_metadata(file, max_pixels=settings.max_pixels, max_file_bytes=settings.max_file_bytes)
    if as_json:
        typer.echo(to_json(found))
    else:
        show(file, found)


def to_json(found: "Metadata") -> str:
    said = {
        "producer": found.producer,
        "prompt": found.prompt,
        "negative_prompt": found.negative_prompt,
        "settings": dict(found.settings),
        "spec": None if found.spec is None else found.spec.model_dump(mode="json"),
        "spec_digest": None if found.spec is None else found.spec.digest(),
        "raw": dict(found.raw),
    }
    return json.dumps(said)


def show(file: Path, found: "Metadata") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if found.producer == "unknown":
        texts = f"; --json shows its text chunks: {', '.join(found.raw)}" if found.raw else ""
        console.print(Text(f"{file} has no known settings in its metadata{texts}"))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "made by": found.producer,
        "prompt": found.prompt,
        "negative_prompt": found.negative_prompt,
        **found.settings,
    }
    if found.spec is not None:
        rows |= {"task": found.spec.task, "spec_digest": found.spec.digest()}
        rows |= {"model_digest": digest} if (digest := getattr(found.spec, "model_digest", None)) else {}
    for name, value in rows.items():
        if value not in ("", None):
            table.add_row(name.replace("_", " "), Text(worded(value)))
    console.print(table)
    if found.spec is not None:
        console.print(Text(f"\nIt can be drawn again: safelight replay {file}", style="dim"))


def worded(value: object) -> str:
    match value:
        case dict():
            parts: dict[str, object] = value  # pyright: ignore[reportUnknownVariableType]
            return ", ".join(f"{name} {part}" for name, part in parts.items() if part is not None)
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)
