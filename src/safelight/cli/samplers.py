"""`safelight samplers`: the ways from noise to a picture, in words and as curves."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.diffusion.samplers import Sampler

EXAMPLES = """\
[bold]Examples[/]
  safelight samplers
  safelight samplers plot "DPM++ 2M Karras" --steps 20 --out karras.png
  safelight generate "a red apple" --sampler "Euler a"
"""

app = typer.Typer(name="samplers", help="List the samplers, or plot one.", epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
def samplers(ctx: typer.Context, as_json: options.Json = False) -> None:
    if ctx.invoked_subcommand is None:
        list_samplers(as_json=as_json)


@app.command("list", epilog=EXAMPLES)
def list_samplers(as_json: options.Json = False) -> None:
    """List every sampler with its spacings: "Euler" with "Karras" is named "Euler Karras"."""
    from safelight.diffusion.samplers import SAMPLERS, add_samplers
    from safelight.plugins import Plugins
    from safelight.settings import Settings

    add_samplers(Plugins(on=Settings.from_environment().plugins))
    if as_json:
        for sampler in SAMPLERS.values():
            typer.echo(json.dumps(to_dict(sampler)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("name", "order", "calls", "noise", "description, + spacings that may follow the name"):
        table.add_column(heading, no_wrap=heading == "name")
    for sampler in SAMPLERS.values():
        if sampler.base:
            continue
        about = Text(sampler.description)
        if sampler.spacings:
            about.append(f"\n+ {', '.join(sampler.spacings)}", style="dim")
        noise = "yes" if sampler.stochastic else ""
        table.add_row(sampler.name, str(sampler.order), str(sampler.calls_per_step), noise, about)
    console = Console(highlight=False)
    console.print(table)
    for line in (
        "calls: network calls per step",
        "noise: adds new noise at each step, so the number of steps changes the picture",
    ):
        console.print(Text(line, style="dim"))


@app.command(epilog=EXAMPLES)
def plot(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sampler.")],
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 20,
    strength: Annotated[
        float, typer.Option(help="Denoising strength of image-to-image: below 1 starts at a lower noise level.")
    ] = 1.0,
    model: options.Model = "mini",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="PNG to write.", show_default="NAME.png")
    ] = None,
) -> None:
    """Draw the noise levels and the coefficients of a sampler's schedule to a PNG."""
    from safelight.assets.picture_name import picture_name
    from safelight.cli.out import require_writable
    from safelight.diffusion.samplers import add_samplers, find_sampler
    from safelight.errors import InvalidRequest
    from safelight.models.checkpoints.families import describe
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.plugins import Plugins
    from safelight.settings import Settings

    settings = Settings.from_environment()
    add_samplers(Plugins(on=settings.plugins))
    sampler = find_sampler(name)
    config = describe(open_catalogue(settings).find(model)).scheduler
    file = out or Path(picture_name(sampler.name.replace("+", "p"), steps)).with_suffix(".png")
    if file.suffix.lower() != ".png":
        raise InvalidRequest(f"--out: a plot is a PNG; name it {file.with_suffix('.png')}")
    require_writable([file.absolute().parent])

    from safelight.diffusion.plot import plot as draw
    from safelight.diffusion.schedules import schedule_for

    schedule = schedule_for(sampler, config, steps=steps, strength=strength, cache=settings.cache / "schedules")
    draw(schedule, sampler.name).save(file)
    typer.echo(str(file))


def to_dict(sampler: "Sampler") -> dict[str, object]:
    return {
        "name": sampler.name,
        "aliases": list(sampler.aliases),
        "base": sampler.plain,
        "order": sampler.order,
        "calls_per_step": sampler.calls_per_step,
        "stochastic": sampler.stochastic,
        "kind": sampler.kind,
        "about": sampler.description,
    }
