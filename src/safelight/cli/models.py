"""`safelight models`: which checkpoints there are, and what one is."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from safelight.cli import options

EXAMPLES = """\
[bold]Examples[/]
  safelight models list
  safelight models show mini
  safelight models show ./stable-diffusion-v1-5 --json
"""
LICENCES = ("LICENSE*", "LICENCE*", "license*", "licence*", "COPYING*")

app = typer.Typer(name="models", help="List the checkpoints, or show one.", epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, as_json: options.Json = False) -> None:
    if ctx.invoked_subcommand is None:
        list_models(as_json=as_json)


@app.command("list", epilog=EXAMPLES)
def list_models(as_json: options.Json = False) -> None:
    """List the embedded model, and those under SAFELIGHT_HOME/models."""
    from safelight.errors import SafelightError
    from safelight.models.catalogue import Catalogue
    from safelight.settings import Settings

    settings = Settings.from_environment()
    catalogue = Catalogue(settings.models)
    found: list[dict[str, Any]] = []
    for name in catalogue.names():
        try:
            found.append(summary(name, catalogue.find(name)))
        except SafelightError as error:
            found.append({"name": name, "error": str(error)})
    if as_json:
        for model in found:
            typer.echo(json.dumps(model))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("name", "family", "prediction", "native size", "sampler", "steps", "on disk"):
        table.add_column(heading)
    for model in found:
        if "error" in model:
            table.add_row(model["name"], Text(model["error"], style="red"))
        else:
            size, defaults = f"{model['width']}x{model['height']}", model["defaults"]
            row = (model["name"], model["family"], model["prediction"], size, defaults["sampler"], defaults["steps"])
            table.add_row(*map(str, row), megabytes(model["size_bytes"]))
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(f"\nAny diffusers folder under {settings.models} is listed here by its name.", style="dim"))


@app.command(epilog=EXAMPLES)
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FOLDER|HUB_ID", help="A hub id must have been downloaded before.")
    ],
    as_json: options.Json = False,
) -> None:
    """Show a checkpoint: its kind, its defaults, its size, its digest and its licence."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # looking at a model should not download gigabytes
    from safelight.models.catalogue import Catalogue
    from safelight.models.digest import digest_model
    from safelight.models.families import describe
    from safelight.settings import Settings

    settings = Settings.from_environment()
    folder = Catalogue(settings.models).find(name)
    model: dict[str, Any] = summary(name, folder) | {
        "digest": digest_model(describe(folder), cache=settings.cache / "sums.json")
    }
    if as_json:
        typer.echo(json.dumps(model))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "name": model["name"],
        "folder": model["folder"],
        "family": model["family"],
        "prediction": model["prediction"],
        "native size": f"{model['width']}x{model['height']}",
        "inpaints natively": "yes" if model["inpaints_natively"] else "no",
        **{f"default {key}": value for key, value in model["defaults"].items() if key not in ("width", "height")},
        "on disk": megabytes(model["size_bytes"]),
        "licence": model["licence"] or "no licence file in the folder",
        "digest": model["digest"],
    }
    for key, value in rows.items():
        table.add_row(key.replace("_", " "), Text(str(value)))
    Console(highlight=False).print(table)


def summary(name: str, folder: Path) -> dict[str, Any]:
    """What the configuration files say; no weights are read."""
    from safelight.models.families import describe

    about = describe(folder)
    licence = next((path for pattern in LICENCES for path in sorted(folder.glob(pattern))), None)
    return {
        "name": name,
        "folder": str(folder),
        "family": about.family.name,
        "prediction": about.prediction,
        "width": about.defaults.width,
        "height": about.defaults.height,
        "inpaints_natively": about.inpaints_natively,
        "defaults": about.defaults.model_dump(mode="json"),
        "size_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "licence": str(licence) if licence else None,
    }


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:,.1f} GB"
