"""`safelight lora`: list LoRAs, or describe one."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.models.checkpoints.catalogue import Catalogue

EXAMPLES = """\
[bold]Examples[/]
  safelight lora list
  safelight lora show watercolour
  safelight lora show ./watercolour.safetensors --model mini --json
"""

app = typer.Typer(name="lora", help="List the LoRAs, or show one.", epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
def lora(ctx: typer.Context, as_json: options.Json = False) -> None:
    if ctx.invoked_subcommand is None:
        list_loras(as_json=as_json)


@app.command("list", epilog=EXAMPLES)
def list_loras(as_json: options.Json = False) -> None:
    """List the LoRAs under SAFELIGHT_HOME/loras."""
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.settings import Settings

    settings = Settings.from_environment()
    paths = open_catalogue(settings).files("lora")
    if as_json:
        for name, path in paths.items():
            typer.echo(json.dumps({"name": name, "path": str(path), "size_bytes": path.stat().st_size}))
        return
    for name, path in paths.items():
        typer.echo(f"{name}  {path.stat().st_size / 1e6:,.1f} MB  {path}")
    if not paths:
        typer.echo(f"There are no LoRAs. Put safetensors files under {settings.loras}.")


@app.command(epilog=EXAMPLES)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE")],
    model: Annotated[
        str | None, typer.Option(help="Match it against this model's layers, and list keys without a layer.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show a LoRA: its algorithm, its ranks, the model family it was probably made for, and unknown keys."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # describing a file should not download gigabytes
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.settings import Settings

    catalogue = open_catalogue(Settings.from_environment())
    path = catalogue.find(as_path(name), "lora")
    description = summary(path) | {"digest": catalogue.sum(path)}
    if model is not None:
        description |= {"model": model, **match_to(path, model, catalogue)}
    if as_json:
        typer.echo(json.dumps(description))
        return
    for key, value in description.items():
        if isinstance(value, list):
            typer.echo(f"{key.replace('_', ' ')}: {len(value) or 'none'}")
            for entry in value:
                typer.echo(f"  {entry}")
        else:
            typer.echo(f"{key.replace('_', ' ')}: {'not known' if value is None else value}")


def as_path(name: str) -> str:
    """The absolute path if the name is a file in the working folder, with or without `./`; else the name."""
    return str(Path(name).absolute()) if name.endswith(".safetensors") and Path(name).is_file() else name


def summary(path: Path) -> dict[str, Any]:
    """Description of the file by its own contents."""
    from safelight.models.adapters.lora import family_of
    from safelight.models.weights.lora_file import algorithm_of, rank_of, read_lora

    file = read_lora(path)
    ranks = sorted({rank for tensors in file.layers.values() if (rank := rank_of(tensors)) is not None})
    parts = [target.part or "unnamed" for target in file.layers]
    return {
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "made_for": family_of(file),
        "algorithm": ", ".join(sorted({algorithm_of(tensors) for tensors in file.layers.values()})),
        "rank": ", ".join(map(str, ranks)) or None,
        "layers": ", ".join(f"{part} {parts.count(part)}" for part in sorted(set(parts))),
        "unknown_keys": list(file.unknown_keys),
    }


def match_to(path: Path, model: str, catalogue: "Catalogue") -> dict[str, Any]:
    """Matched and unmatched keys for the model's layers; the model's weights are not read."""
    from safelight.models.adapters.lora import fit
    from safelight.models.checkpoints.families import describe
    from safelight.models.networks.components import Outline
    from safelight.models.weights.lora_file import read_lora

    outline = Outline(model, describe(catalogue.find(model)))
    fitted, unmatched = fit(read_lora(path), outline.networks, name=path.stem, model=model)
    matched = {part: len(layers) for part, layers in fitted.items()}
    return {"matched": ", ".join(f"{part} {n}" for part, n in matched.items()), "unmatched": list(unmatched)}
